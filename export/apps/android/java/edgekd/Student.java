package edgekd;

import static edgekd.StudentException.FRESH;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.IntPredicate;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

/** An opened bundle with one variant loaded. Threads may share it. */
public final class Student implements AutoCloseable {
    private final Bundle bundle;
    private final Manifest manifest;
    private final String variant;
    private final List<String> names = new ArrayList<>();
    private final Backend backend;
    private final Tokenizer tokenizer; // null where samples are no texts
    private final boolean oneByOne; // a sample's answer would depend on its neighbours in a call

    /**
     * Checks the bundle and loads a variant (null: the bundle's choice for this CPU).
     *
     * @throws StudentException whose text says what cannot be used, and what to do about it
     */
    public Student(Source source, Backend.Factory factory, String variant, int threads) {
        int cores = Runtime.getRuntime().availableProcessors();
        if (threads < 1 || threads > cores) {
            throw new StudentException(
                    "threads is " + threads + ", expected a whole number from 1 to " + cores + " cores");
        }
        this.bundle = new Bundle(source);
        this.manifest = bundle.manifest;
        this.variant = variant != null ? variant : bundle.defaultVariant(Bundle.cpuKind());
        Manifest.Variant chosen = manifest.variants.get(this.variant);
        if (chosen == null) {
            throw new StudentException("no variant '" + this.variant + "', expected one of "
                    + String.join(", ", manifest.variants.keySet()));
        }
        Manifest.Tensor input = manifest.inputs.get(0), output = manifest.outputs.get(0);
        boolean known = Arrays.asList("float32", "uint8", "int64").contains(input.dtype);
        if (manifest.inputs.size() != 1 || !known || !output.dtype.equals("float32")) {
            throw new StudentException("the model reads " + manifest.inputs.size() + " inputs, the first " + input.dtype
                    + "; expected one of float32, uint8 or int64 and a float32 output: use another runtime for it");
        }
        names.add(output.name);
        chosen.golden.stream().filter(name -> !names.contains(name)).forEach(names::add);
        this.tokenizer = bundle.tokenizer();
        byte[] graph = bundle.read(chosen.graph);
        this.oneByOne = measures(graph);
        this.backend = factory.open(graph, threads);
    }

    /** Whether a graph measures its activations: all samples of a call share one scale then. */
    private static boolean measures(byte[] graph) {
        byte[] name = "DynamicQuantize".getBytes(StandardCharsets.US_ASCII);
        int same = 0; // its first letter is in it once: after a mismatch it starts over
        for (int at = 0; at < graph.length && same < name.length; at++) {
            same = graph[at] == name[same] ? same + 1 : graph[at] == name[0] ? 1 : 0;
        }
        return same == name.length;
    }

    public String variant() {
        return variant;
    }

    public List<String> labels() {
        return Collections.unmodifiableList(manifest.labels);
    }

    /** Whether pictures are to be turned as their EXIF orientation says: the bundle's own choice. */
    public boolean turnsPictures() {
        return manifest.preprocess.isEmpty() || manifest.preprocess.get(0).exif;
    }

    /** The answer for one sample: an image (H, W) or (H, W, C), or whatever array the model was trained on. */
    public Answer predict(Sample sample, int topK) {
        return predictBatch(Collections.singletonList(sample), topK).get(0);
    }

    /** The answer for a text. */
    public Answer predict(String text, int topK) {
        return predictTexts(Collections.singletonList(text), topK).get(0);
    }

    /** Whether samples are texts. */
    public boolean readsTexts() {
        return tokenizer != null;
    }

    /** The answers for several texts, in their order: those of predict, run together if possible. */
    public List<Answer> predictTexts(List<String> texts, int topK) {
        if (oneByOne && texts.size() > 1) {
            return texts.stream().map(text -> predict(text, topK)).collect(Collectors.toList());
        }
        long started = System.nanoTime();
        List<Tokenizer.Tokens> all = texts.stream().map(this::tokens).collect(Collectors.toList());
        return answers(all.stream().map(Student::ids).collect(Collectors.toList()), row -> all.get(row).truncated, topK,
                started);
    }

    /**
     * The answers for several samples that preprocessing brings to one shape, in their order: those of predict, run
     * together if possible.
     */
    public List<Answer> predictBatch(List<Sample> samples, int topK) {
        if (oneByOne && samples.size() > 1) {
            return samples.stream().map(sample -> predict(sample, topK)).collect(Collectors.toList());
        }
        return answers(samples, row -> false, topK, System.nanoTime());
    }

    private List<Answer> answers(List<Sample> samples, IntPredicate truncated, int topK, long started) {
        if (topK < 1) {
            throw new StudentException("topK is " + topK + ", expected a whole number from 1");
        }
        if (samples.isEmpty()) {
            return new ArrayList<>();
        }
        Sample outputs = run(Preprocessing.arithmetic(manifest.preprocess, stack(samples))).get(names.get(0));
        int width = manifest.labels.size();
        if (!Arrays.equals(outputs.shape, new int[] {samples.size(), width})) {
            throw new StudentException(
                    "the model gave " + Sample.text(outputs.shape) + ", expected one number per label" + FRESH);
        }
        float[] scores = Preprocessing.postprocess(manifest.postprocess, outputs.floats, width);
        for (float score : scores) {
            if (Float.isNaN(score) || Float.isInfinite(score)) {
                throw new StudentException(
                        "the answer is NaN or infinite; look for NaN or infinite values in the input");
            }
        }
        double latencyMs = (System.nanoTime() - started) / 1e6 / samples.size();
        return IntStream.range(0, samples.size())
                .mapToObj(row
                        -> answer(Arrays.copyOfRange(scores, row * width, (row + 1) * width),
                                Arrays.copyOfRange(outputs.floats, row * width, (row + 1) * width), topK, latencyMs,
                                truncated.test(row)))
                .collect(Collectors.toList());
    }

    /** Runs once on zeros, so that the first answer is not the slow one. */
    public void warmUp() {
        int[] shape = Arrays.stream(manifest.inputs.get(0).shape).map(side -> Math.max(side, 1)).toArray();
        run(Sample.ofFloats(new float[Sample.count(shape)], shape));
    }

    /** What the model reads of a sample, after preprocessing: (1, ...). */
    public Sample preprocess(Sample sample) {
        return Preprocessing.arithmetic(manifest.preprocess, stack(Collections.singletonList(sample)));
    }

    /** What the model reads of a text: the ids of its tokens (1, T). */
    public Sample preprocess(String text) {
        return preprocess(ids(tokens(text)));
    }

    /** What differs from the bundle's golden vectors: nothing, where all is well. */
    public List<String> selfTest() {
        List<String> problems = new ArrayList<>();
        Map<String, Sample> golden = bundle.golden();
        Manifest.Variant limits = manifest.variants.get(variant);
        Sample ready = get(golden, "input." + manifest.inputs.get(0).name);
        checkPreprocessing(manifest, golden, problems);
        Map<String, Sample> outputs = run(ready);
        if (limits.golden.isEmpty()) {
            throw new StudentException("the golden vectors hold no output of '" + variant + "'" + FRESH);
        }
        for (String name : limits.golden) {
            compare(name, outputs.get(name), get(golden, "output." + variant + "." + name), limits, problems);
        }
        return problems;
    }

    @Override
    public void close() {
        backend.close();
    }

    static void checkPreprocessing(Manifest manifest, Map<String, Sample> golden, List<String> problems) {
        if (!golden.containsKey("raw")) {
            return;
        }
        Sample found = Preprocessing.arithmetic(manifest.preprocess, golden.get("raw"));
        Sample wanted = get(golden, "input." + manifest.inputs.get(0).name);
        double apart = Arrays.equals(found.shape, wanted.shape) ? largest(found.floats, wanted.asFloats()) : 1;
        if (!(apart <= 1e-6)) {
            problems.add("preprocessing differs by " + apart + ", expected at most 1e-06");
        }
    }

    private static Sample get(Map<String, Sample> golden, String name) {
        if (!golden.containsKey(name)) {
            throw new StudentException("the golden vectors lack '" + name + "'" + FRESH);
        }
        return golden.get(name);
    }

    private static double largest(float[] found, float[] wanted) {
        double worst = 0;
        for (int i = 0; i < found.length; i++) {
            worst = Math.max(worst, Math.abs((double) found[i] - wanted[i])); // NaN stays NaN
        }
        return worst;
    }

    private void compare(String name, Sample found, Sample wanted, Manifest.Variant limits, List<String> problems) {
        if (!Arrays.equals(found.shape, wanted.shape) || found.shape.length < 2) {
            throw new StudentException("output '" + name + "' has the shape " + Sample.text(found.shape) + ", expected "
                    + Sample.text(wanted.shape) + FRESH);
        }
        float[] is = found.floats, should = wanted.asFloats();
        boolean inside = true;
        for (int i = 0; i < is.length; i++) {
            double apart = Math.abs((double) is[i] - should[i]);
            inside &= apart <= limits.abs + limits.rel * Math.abs((double) should[i]);
        }
        if (!inside) {
            problems.add("output '" + name + "' differs by up to " + largest(is, should) + ", expected " + limits.abs);
        }
        int width = found.shape[found.shape.length - 1], rows = width == 0 ? 0 : is.length / width, same = 0;
        for (int row = 0; row < rows; row++) {
            same += best(is, row * width, width) == best(should, row * width, width) ? 1 : 0;
        }
        if (manifest.task.equals("classification") && same < limits.agreement * rows) {
            problems.add(same + " of " + rows + " answers are the same");
        }
    }

    private static int best(float[] values, int from, int width) {
        int best = 0;
        for (int i = 1; i < width; i++) {
            best = values[from + i] > values[from + best] ? i : best;
        }
        return best;
    }

    private Tokenizer.Tokens tokens(String text) {
        if (tokenizer == null) {
            throw new StudentException("found a text, but this model reads no texts; give an array");
        }
        return tokenizer.encode(text, manifest.preprocess.get(0).maxLength);
    }

    private static Sample ids(Tokenizer.Tokens tokens) {
        float[] ids = new float[tokens.ids.length];
        for (int i = 0; i < ids.length; i++) {
            ids[i] = tokens.ids[i];
        }
        return Sample.ofFloats(ids, ids.length);
    }

    private Sample prepared(Sample sample) {
        return tokenizer == null ? Preprocessing.prepare(manifest.preprocess, sample)
                                 : Preprocessing.padded(manifest.preprocess.get(0), tokenizer, sample);
    }

    private Sample stack(List<Sample> samples) {
        List<Sample> prepared = samples.stream()
                                        .map(this::prepared)
                                        .collect(Collectors.toList());
        int[] sides = prepared.get(0).shape;
        boolean bytes = prepared.stream().allMatch(Sample::isBytes);
        int each = Sample.count(sides), place = 0;
        int[] shape = IntStream.concat(IntStream.of(samples.size()), Arrays.stream(sides)).toArray();
        int count = Sample.count(shape);
        byte[] allBytes = new byte[bytes ? count : 0];
        float[] allFloats = new float[bytes ? 0 : count];
        for (Sample sample : prepared) {
            if (!Arrays.equals(sample.shape, sides)) {
                throw new StudentException("the samples have shapes " + Sample.text(sides) + " and "
                        + Sample.text(sample.shape) + ", expected one shape; predict them one by one");
            }
            System.arraycopy(bytes ? sample.bytes : sample.asFloats(), 0, bytes ? allBytes : allFloats, place, each);
            place += each;
        }
        return bytes ? Sample.ofBytes(allBytes, shape) : Sample.ofFloats(allFloats, shape);
    }

    /** The graph's outputs for preprocessed inputs (N, ...); a graph with a fixed batch gets it in pieces. */
    private Map<String, Sample> run(Sample batch) {
        Manifest.Tensor input = manifest.inputs.get(0);
        boolean fits = input.shape.length == batch.shape.length;
        for (int axis = 1; fits && axis < batch.shape.length; axis++) {
            fits = input.shape[axis] == 0 || input.shape[axis] == batch.shape[axis];
        }
        if (!fits) {
            throw new StudentException("preprocessing gives a batch of shape " + Sample.text(batch.shape)
                    + ", the model reads " + Sample.text(input.shape) + " (0: any)");
        }
        int total = batch.shape[0], size = input.shape[0] == 0 ? total : input.shape[0];
        if (size == total) {
            return checked(backend.run(input.name, input.dtype, typed(batch, input.dtype), names), size);
        }
        int each = Sample.count(Arrays.copyOfRange(batch.shape, 1, batch.shape.length));
        float[] all = batch.asFloats();
        Map<String, float[]> joined = new LinkedHashMap<>();
        Map<String, int[]> shapes = new LinkedHashMap<>();
        for (int at = 0; at < total; at += size) {
            int[] shape = batch.shape.clone();
            shape[0] = size;
            float[] piece = new float[size * each];
            for (int row = 0; row < size; row++) {
                System.arraycopy(all, Math.min(at + row, total - 1) * each, piece, row * each, each);
            }
            int here = Math.min(size, total - at);
            Sample ready = typed(Sample.ofFloats(piece, shape), input.dtype);
            checked(backend.run(input.name, input.dtype, ready, names), size).forEach((name, sample) -> {
                float[] before = joined.getOrDefault(name, new float[0]);
                int count = sample.floats.length / size * here;
                float[] after = Arrays.copyOf(before, before.length + count);
                System.arraycopy(sample.floats, 0, after, before.length, count);
                joined.put(name, after);
                int[] sides = sample.shape.clone();
                sides[0] = total;
                shapes.put(name, sides);
            });
        }
        Map<String, Sample> results = new LinkedHashMap<>();
        joined.forEach((name, values) -> results.put(name, Sample.ofFloats(values, shapes.get(name))));
        return results;
    }

    private static Sample typed(Sample batch, String dtype) {
        if (!dtype.equals("uint8")) {
            return batch.isBytes() ? Sample.ofFloats(batch.asFloats(), batch.shape) : batch;
        }
        if (batch.isBytes()) {
            return batch;
        }
        byte[] bytes = new byte[batch.floats.length];
        for (int i = 0; i < bytes.length; i++) {
            if (!(batch.floats[i] >= 0 && batch.floats[i] <= 255)) {
                throw new StudentException(
                        "found a number outside 0 to 255, but the model reads uint8; give images as bytes");
            }
            bytes[i] = (byte) (int) batch.floats[i];
        }
        return Sample.ofBytes(bytes, batch.shape);
    }

    private Map<String, Sample> checked(Map<String, Sample> outputs, int rows) {
        for (String name : names) {
            Sample output = outputs.get(name);
            if (output == null || output.isBytes() || output.shape.length == 0 || output.shape[0] != rows) {
                throw new StudentException("the graph gives other outputs than bundle.json says" + FRESH);
            }
        }
        return outputs;
    }

    private Answer answer(float[] scores, float[] outputs, int topK, double latencyMs, boolean truncated) {
        double uncertainty = Double.NaN;
        if (manifest.task.equals("embedding")) {
            return new Answer(null, -1, length(scores), Collections.emptyList(), new float[0], uncertainty, outputs,
                    latencyMs, truncated);
        }
        List<Integer> order = IntStream.range(0, scores.length).boxed().collect(Collectors.toList());
        if (!manifest.task.equals("regression")) {
            order.sort((a, b) -> Float.compare(scores[b] + 0f, scores[a] + 0f)); // + 0: a zero has no sign
        }
        if (manifest.task.equals("classification")) {
            order = order.subList(0, Math.min(topK, order.size()));
            uncertainty = entropy(scores);
        } else if (manifest.task.equals("multilabel")) {
            double threshold = manifest.postprocess.stream()
                                       .filter(step -> step.op.equals("threshold"))
                                       .mapToDouble(step -> step.value)
                                       .findFirst()
                                       .orElse(0.5);
            order.removeIf(index -> scores[index] < threshold);
        }
        List<String> labels = order.stream().map(manifest.labels::get).collect(Collectors.toList());
        float[] top = new float[order.size()];
        float largest = Float.NEGATIVE_INFINITY;
        for (int i = 0; i < top.length; i++) {
            top[i] = scores[order.get(i)];
        }
        for (float score : scores) {
            largest = Math.max(largest, score);
        }
        boolean none = order.isEmpty();
        return new Answer(none ? null : labels.get(0), none ? -1 : order.get(0), none ? largest : top[0], labels, top,
                uncertainty, outputs, latencyMs, truncated);
    }

    private static float length(float[] vector) {
        double squares = 0;
        for (float value : vector) {
            squares += (double) value * value;
        }
        return (float) Math.sqrt(squares);
    }

    /** The entropy of probabilities as a share of the largest possible; NaN where they are none. */
    private static double entropy(float[] scores) {
        double total = 0, sum = 0;
        for (float score : scores) {
            if (score < 0) {
                return Double.NaN;
            }
            total += score;
            sum -= score > 0 ? score * Math.log(score) : 0;
        }
        boolean probabilities = scores.length > 1 && Math.abs(total - 1) <= 1e-3;
        return probabilities ? Math.max(0, sum / Math.log(scores.length)) : Double.NaN;
    }
}
