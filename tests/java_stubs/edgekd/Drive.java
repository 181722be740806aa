package edgekd;

import android.content.Context;
import android.content.res.AssetManager;
import edgekd.android.AndroidStudent;
import edgekd.onnx.OnnxBackend;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.StringJoiner;
import java.util.stream.Collectors;

/** What the tests ask of the Android app's Java, one command per process. */
public final class Drive {
    private Drive() {
    }

    public static void main(String[] words) throws IOException {
        List<String> rest = Arrays.asList(words).subList(1, words.length);
        try {
            switch (words[0]) {
                case "self-test":
                    try (Student student = open(rest.get(0), rest.get(1), 1)) {
                        student.selfTest().forEach(System.out::println);
                        System.exit(student.selfTest().isEmpty() ? 0 : 1);
                    }
                    break;
                case "threads":
                    open(rest.get(0), null, Integer.parseInt(rest.get(1))).close();
                    break;
                case "show":
                    show(rest.get(0), rest.subList(1, rest.size()));
                    break;
                case "predict":
                    predict(rest.get(0), rest.get(1), rest.subList(2, rest.size()));
                    break;
                case "texts":
                    texts(rest.get(0), rest.get(1), rest.get(2));
                    break;
                case "vectors":
                    vectors(rest.get(0), rest.get(1), rest.get(2));
                    break;
                case "together":
                    together(rest.get(0), rest.get(1), rest.get(2));
                    break;
                case "pictures":
                    pictures(rest.get(0), rest.get(1), rest.subList(2, rest.size()));
                    break;
                case "fuzz":
                    fuzz(Integer.parseInt(rest.get(0)), rest.subList(1, rest.size()));
                    break;
                default:
                    System.exit(2);
            }
        } catch (StudentException error) {
            System.err.println("error: " + error.getMessage());
            System.exit(3);
        }
    }

    private static Student open(String bundle, String variant, int threads) {
        return new Student(edgekd.Files.open(Paths.get(bundle)), OnnxBackend::new, variant, threads);
    }

    private static Sample read(String name) throws IOException {
        return Npz.array(Files.readAllBytes(Paths.get(name)), name);
    }

    /** One line per file: what the model reads. */
    private static void show(String bundle, List<String> names) throws IOException {
        Bundle opened = new Bundle(edgekd.Files.open(Paths.get(bundle)));
        for (String name : names) {
            Sample prepared = Preprocessing.prepare(opened.manifest.preprocess, read(name));
            int[] shape = new int[prepared.shape.length + 1];
            shape[0] = 1;
            System.arraycopy(prepared.shape, 0, shape, 1, prepared.shape.length);
            Sample batch = prepared.isBytes() ? Sample.ofBytes(prepared.bytes, shape)
                                              : Sample.ofFloats(prepared.floats, shape);
            StringJoiner line = new StringJoiner(" ");
            for (float value : Preprocessing.arithmetic(opened.manifest.preprocess, batch).floats) {
                line.add(Float.toString(value));
            }
            System.out.println(line);
        }
    }

    private static void print(Answer answer) {
        StringJoiner line = new StringJoiner("\t");
        line.add(String.valueOf(answer.label))
                .add(String.valueOf(answer.index))
                .add(String.valueOf(answer.uncertainty));
        for (int i = 0; i < answer.topScores.length; i++) {
            line.add(answer.topLabels.get(i)).add(Float.toString(answer.topScores[i]));
        }
        System.out.println(line);
    }

    private static void predict(String bundle, String variant, List<String> names) throws IOException {
        try (Student student = open(bundle, variant, 1)) {
            student.warmUp();
            for (String name : names) {
                print(student.predict(read(name), 3));
            }
        }
    }

    private static List<String> strings(String file) throws IOException {
        List<?> given = (List<?>) Json.parse(Files.readAllBytes(Paths.get(file)), file);
        return given.stream().map(String.class::cast).collect(Collectors.toList());
    }

    /** Of each text in a JSON file the scores: run with all others, as ids with all others, and alone. */
    private static void together(String bundle, String variant, String file) throws IOException {
        List<String> texts = strings(file);
        try (Student student = open(bundle, variant, 1)) {
            List<Answer> together = student.predictTexts(texts, 3);
            List<Answer> asIds = student.predictBatch(
                    texts.stream().map(text -> row(student.preprocess(text))).collect(Collectors.toList()), 3);
            for (int i = 0; i < texts.size(); i++) {
                System.out.println(Arrays.toString(together.get(i).topScores) + "\t"
                        + Arrays.toString(asIds.get(i).topScores) + "\t"
                        + Arrays.toString(student.predict(texts.get(i), 3).topScores));
            }
        }
    }

    /** Of each text in a JSON file the answer as a line of classes, the score, and the vector. */
    private static void vectors(String bundle, String variant, String file) throws IOException {
        try (Student student = open(bundle, variant, 1)) {
            for (Answer answer : student.predictTexts(strings(file), 3)) {
                print(answer);
                System.out.println(answer.score + "\t" + Arrays.toString(answer.outputs));
            }
        }
    }

    private static Sample row(Sample batch) {
        return Sample.ofFloats(batch.floats, batch.shape[1]);
    }

    /** The texts in a JSON file through the class for Android: of each if it is too long, its ids, then the answer. */
    private static void texts(String assets, String variant, String file) throws IOException {
        Context context = new Context(new AssetManager(Path.of(assets)));
        List<String> texts = strings(file);
        try (AndroidStudent opened = new AndroidStudent(context, "student.edgekd", variant, 1)) {
            Student student = opened.student();
            student.warmUp();
            for (Answer together : student.predictTexts(texts, 3)) {
                String text = texts.remove(0);
                Answer alone = opened.predict(text, 3);
                if (!together.topLabels.equals(alone.topLabels) || together.truncated != alone.truncated) {
                    throw new StudentException("together " + together.topLabels + ", alone " + alone.topLabels);
                }
                System.out.print(alone.truncated + "\t" + Arrays.toString(student.preprocess(text).floats) + "\t");
                print(alone);
            }
        }
    }

    /** Encoded pictures through the class for Android. */
    private static void pictures(String assets, String variant, List<String> names) throws IOException {
        Context context = new Context(new AssetManager(Path.of(assets)));
        try (AndroidStudent student = new AndroidStudent(context, "student.edgekd", variant, 1)) {
            for (String name : names) {
                print(student.predict(Files.readAllBytes(Paths.get(name)), 3));
            }
        }
    }

    /** Damaged files: each must be read, or refused with a StudentException. */
    private static void fuzz(int count, List<String> names) throws IOException {
        byte[][] seeds = new byte[names.size()][];
        for (int i = 0; i < seeds.length; i++) {
            seeds[i] = Files.readAllBytes(Paths.get(names.get(i)));
        }
        String[] telling = {"0", "-1", "1e309", "9223372036854775808", "null", "\"\"", "[]", "{}", "\"..\"", "\\ud800",
                "[[[[", "16385", "\"op\"", "\"version\": 2", "PK", "(99999999,)"};
        Random random = new Random(0);
        int opened = 0, refused = 0;
        for (int run = 0; run < count; run++) {
            byte[] data = seeds[random.nextInt(seeds.length)].clone();
            for (int change = random.nextInt(3); change >= 0 && data.length > 8; change--) {
                int at = random.nextInt(data.length - 1), kind = random.nextInt(4);
                if (kind == 0) {
                    data[at] ^= (byte) (1 << random.nextInt(8));
                } else if (kind == 1) {
                    data = Arrays.copyOf(data, at);
                } else {
                    byte[] word = telling[random.nextInt(telling.length)].getBytes();
                    byte[] tail = Arrays.copyOfRange(data, Math.min(data.length, at + random.nextInt(12)), data.length);
                    byte[] head = Arrays.copyOf(data, at + word.length + tail.length);
                    System.arraycopy(word, 0, head, at, word.length);
                    System.arraycopy(tail, 0, head, at + word.length, tail.length);
                    data = head;
                }
            }
            for (int reader = 0; reader < 4; reader++) {
                try {
                    if (reader == 3) {
                        new Tokenizer(data).encode("a \u00c4 [MASK] \ud83d", 8);
                    } else if (reader == 0) {
                        Manifest manifest = Manifest.parse(data);
                        Sample sample =
                                Preprocessing.prepare(manifest.preprocess, Sample.ofBytes(new byte[105], 5, 7, 3));
                        Preprocessing.arithmetic(manifest.preprocess, sample);
                    } else if (reader == 1) {
                        Npz.read(data, "arrays");
                    } else {
                        Npz.array(data, "array");
                    }
                    opened++;
                } catch (StudentException error) {
                    refused++;
                }
            }
        }
        System.out.println(count + " inputs: " + opened + " opened, " + refused + " refused");
    }
}
