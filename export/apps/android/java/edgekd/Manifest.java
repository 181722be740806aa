package edgekd;

import static edgekd.StudentException.FRESH;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** bundle.json: read as somebody else's text, checked before anything is believed. Unknown keys are ignored. */
final class Manifest {
    static final int MAX_BYTES = 1_000_000;
    static final int MAX_SIDE = 16384;
    private static final long MAX_FILE = 1L << 31;

    /** An input or output; a side of 0 is a symbolic axis. */
    static final class Tensor {
        String name = "";
        String dtype = "";
        int[] shape = {};
    }

    static final class Variant {
        String graph = "";
        double abs = 1e-4;
        double rel = 1e-3;
        double agreement = 1.0;
        List<String> golden = new ArrayList<>();
    }

    static final class Listed {
        String sha256 = "";
        long size;
    }

    String task;
    String golden;
    final List<String> labels = new ArrayList<>();
    List<Step> preprocess;
    List<Step> postprocess;
    List<Tensor> inputs;
    List<Tensor> outputs;
    final Map<String, Variant> variants = new LinkedHashMap<>();
    final Map<String, String> defaults = new LinkedHashMap<>();
    final Map<String, Listed> files = new LinkedHashMap<>();

    private Manifest() {
    }

    /** The checked manifest. Throws StudentException that names the field. */
    static Manifest parse(byte[] data) {
        Map<String, Object> json = table(Json.parse(data, "bundle.json"), "the manifest");
        Object version = get(json, "version", "");
        if (version instanceof Long && (Long) version > 1) {
            throw new StudentException("the bundle has version " + version + ", this reader knows 1; update the app");
        }
        whole(version, "version", 1, 1);
        Manifest made = new Manifest();
        made.task = text(get(json, "task", ""), "task");
        text(get(json, "name", ""), "name");
        if (!Arrays.asList("classification", "multilabel", "regression", "embedding").contains(made.task)) {
            throw wrong("task", "one of classification, multilabel, regression, embedding");
        }
        for (Object label : list(get(json, "labels", ""), "labels")) {
            made.labels.add(text(label, "labels"));
        }
        List<String> known = new ArrayList<>(Step.SPATIAL);
        known.addAll(Step.ARITHMETIC);
        known.addAll(Step.FOR_TEXTS);
        made.preprocess = steps(json, "preprocess", known);
        made.postprocess = steps(json, "postprocess", Step.POST);
        made.inputs = tensors(json, "inputs");
        made.outputs = tensors(json, "outputs");
        made.readFiles(json);
        made.preprocess.stream().filter(Step::isTokenize).forEach(step -> made.listed(step.file, "preprocess[0].file"));
        made.readVariants(json);
        return made;
    }

    private void readFiles(Map<String, Object> json) {
        for (Map.Entry<String, Object> item : table(get(json, "files", ""), "files").entrySet()) {
            String name = item.getKey(), where = "files['" + name + "']";
            if (!isSafe(name) || name.startsWith("bundle.json")) {
                throw new StudentException("bundle.json: files names '" + name
                        + "', which is no file inside it; get it from somewhere else");
            }
            Map<String, Object> record = table(item.getValue(), where);
            Listed listed = new Listed();
            listed.sha256 = text(get(record, "sha256", where), where + ".sha256");
            listed.size = whole(get(record, "size_bytes", where), where + ".size_bytes", 0, MAX_FILE);
            if (!listed.sha256.matches("[0-9a-f]{64}")) {
                throw wrong(where + ".sha256", "64 hexadecimal digits");
            }
            files.put(name, listed);
        }
    }

    private void readVariants(Map<String, Object> json) {
        for (Map.Entry<String, Object> item : table(get(json, "variants", ""), "variants").entrySet()) {
            String where = "variants['" + item.getKey() + "']";
            Map<String, Object> entry = table(item.getValue(), where);
            Variant variant = new Variant();
            variant.graph = listed(get(table(get(entry, "graphs", where), where), "main", where), where + ".graphs");
            Map<String, Object> limits = table(entry.getOrDefault("tolerance", new LinkedHashMap<>()), where);
            variant.abs = real(limits.getOrDefault("abs", variant.abs), where);
            variant.rel = real(limits.getOrDefault("rel", variant.rel), where);
            variant.agreement = real(limits.getOrDefault("label_agreement", variant.agreement), where);
            variants.put(item.getKey(), variant);
        }
        if (variants.isEmpty()) {
            throw wrong("variants", "a table with at least one variant");
        }
        Map<String, Object> chosen = table(json.getOrDefault("default", new LinkedHashMap<>()), "default");
        for (Map.Entry<String, Object> item : chosen.entrySet()) {
            String name = text(item.getValue(), "default");
            if (!variants.containsKey(name)) {
                throw wrong("default", "a table of variants that are there");
            }
            defaults.put(item.getKey(), name);
        }
        Map<String, Object> told = table(get(json, "golden", ""), "golden");
        golden = listed(get(told, "file", "golden"), "golden.file");
        Map<String, Object> outputsOf = table(get(told, "outputs", "golden"), "golden.outputs");
        for (Map.Entry<String, Object> item : outputsOf.entrySet()) {
            if (!variants.containsKey(item.getKey())) {
                throw wrong("golden.outputs", "a table of variants that are there");
            }
            for (Object name : list(item.getValue(), "golden.outputs")) {
                variants.get(item.getKey()).golden.add(text(name, "golden.outputs"));
            }
        }
    }

    private String listed(Object value, String where) {
        String name = text(value, where);
        if (!files.containsKey(name)) {
            throw wrong(where, "a file that 'files' lists");
        }
        return name;
    }

    private static List<Step> steps(Map<String, Object> json, String side, List<String> known) {
        List<Step> steps = new ArrayList<>();
        for (Object item : list(get(json, side, ""), side)) {
            String where = side + "[" + steps.size() + "]";
            steps.add(step(table(item, where), where, known));
        }
        for (int i = 1; i < steps.size(); i++) {
            if (steps.get(i).op.equals("decode") || (steps.get(i).isSpatial() && !steps.get(i - 1).isSpatial())) {
                throw wrong(side, "in order: decode, then steps on one sample, then scale, normalize and layout");
            }
        }
        for (int i = 0; i < steps.size(); i++) {
            boolean forTexts = Step.FOR_TEXTS.contains(steps.get(i).op);
            if (forTexts != steps.get(0).isTokenize() || (i > 0 && steps.get(i).isTokenize())) {
                throw wrong(side, "tokenize, then trim, where texts are read, and neither where they are not");
            }
        }
        return steps;
    }

    private static Step step(Map<String, Object> table, String where, List<String> known) {
        Step step = new Step();
        step.op = text(get(table, "op", where), where + ".op");
        if (!known.contains(step.op)) {
            throw new StudentException("bundle.json: " + where + " is the step '" + step.op
                    + "', which this reader lacks; update the app");
        }
        if (step.op.equals("resize") || step.op.equals("center_crop")) {
            Object size = get(table, "size", where);
            List<Object> sides = size instanceof List ? list(size, where) : Arrays.asList(size);
            boolean alone = !(size instanceof List) && step.op.equals("resize");
            if (sides.size() != (alone ? 1 : 2)) {
                throw wrong(where + ".size", "[height, width]");
            }
            step.size = new int[sides.size()];
            for (int i = 0; i < step.size.length; i++) {
                step.size[i] = (int) whole(sides.get(i), where + ".size", 1, MAX_SIDE);
            }
        }
        if (step.isTokenize()) {
            step.file = text(get(table, "file", where), where + ".file");
            step.maxLength = (int) whole(
                    table.getOrDefault("max_length", (long) step.maxLength), where + ".max_length", 2, MAX_SIDE);
        }
        if (step.op.equals("trim")) {
            step.pad = (int) whole(get(table, "pad", where), where + ".pad", 0, Integer.MAX_VALUE);
        }
        step.white = one(table, "alpha", "black", where, "black", "white").equals("white");
        step.filter = one(table, "filter", step.filter, where, "nearest", "bilinear", "bicubic");
        step.to = one(table, "to", step.to, where, "CHW", "HWC", "flat");
        step.exif = flag(table, "exif", where);
        step.antialias = flag(table, "antialias", where);
        step.factor = real(table.getOrDefault("factor", step.factor), where + ".factor");
        step.temperature = real(table.getOrDefault("temperature", step.temperature), where + ".temperature");
        step.value = real(table.getOrDefault("value", step.value), where + ".value");
        step.mean = figures(table, "mean", step.mean, where);
        step.std = figures(table, "std", step.std, where);
        boolean zero = Arrays.stream(step.std).anyMatch(figure -> figure == 0);
        if (step.temperature <= 0 || zero) {
            throw wrong(where, "within its range");
        }
        return step;
    }

    private static double[] figures(Map<String, Object> table, String key, double[] otherwise, String where) {
        if (!table.containsKey(key)) {
            return otherwise;
        }
        List<Object> items = list(table.get(key), where + "." + key);
        if (items.isEmpty()) {
            throw wrong(where + "." + key, "a list of numbers");
        }
        return items.stream().mapToDouble(item -> real(item, where + "." + key)).toArray();
    }

    private static List<Tensor> tensors(Map<String, Object> json, String side) {
        List<Tensor> tensors = new ArrayList<>();
        for (Object item : list(get(json, side, ""), side)) {
            String where = side + "[" + tensors.size() + "]";
            Map<String, Object> table = table(item, where);
            Tensor tensor = new Tensor();
            tensor.name = text(get(table, "name", where), where + ".name");
            tensor.dtype = text(get(table, "dtype", where), where + ".dtype");
            List<Object> sides = list(get(table, "shape", where), where + ".shape");
            tensor.shape = new int[sides.size()];
            for (int axis = 0; axis < tensor.shape.length; axis++) {
                boolean symbolic = sides.get(axis) instanceof String;
                tensor.shape[axis] =
                        symbolic ? 0 : (int) whole(sides.get(axis), where + ".shape", 1, Sample.MAX_NUMBERS);
            }
            if (tensor.name.isEmpty() || sides.isEmpty()) {
                throw wrong(where, "a tensor with a name and a shape");
            }
            tensors.add(tensor);
        }
        if (tensors.isEmpty()) {
            throw wrong(side, "a list with at least one tensor");
        }
        return tensors;
    }

    /** Whether a name stays inside the bundle. */
    static boolean isSafe(String name) {
        if (name.isEmpty() || name.length() > 255) {
            return false;
        }
        for (int i = 0; i < name.length(); i++) {
            char c = name.charAt(i);
            if (c < 32 || c == 127 || "\\:*?\"<>|".indexOf(c) >= 0) {
                return false;
            }
        }
        for (String part : name.split("/", -1)) {
            if (part.isEmpty() || part.equals(".") || part.equals("..")) {
                return false;
            }
        }
        return true;
    }

    private static StudentException wrong(String where, String expected) {
        return new StudentException("bundle.json: " + where + " is not " + expected + FRESH);
    }

    private static Object get(Map<String, Object> table, String key, String where) {
        if (!table.containsKey(key)) {
            throw new StudentException(
                    "bundle.json: " + (where.isEmpty() ? key : where + "." + key) + " is missing" + FRESH);
        }
        return table.get(key);
    }

    @SuppressWarnings("unchecked")
    private static Map<String, Object> table(Object value, String where) {
        if (!(value instanceof Map)) {
            throw wrong(where, "a table");
        }
        return (Map<String, Object>) value;
    }

    @SuppressWarnings("unchecked")
    private static List<Object> list(Object value, String where) {
        if (!(value instanceof List)) {
            throw wrong(where, "a list");
        }
        return (List<Object>) value;
    }

    private static String text(Object value, String where) {
        if (!(value instanceof String)) {
            throw wrong(where, "a text");
        }
        return (String) value;
    }

    /** True or false; true where it is not told. */
    private static boolean flag(Map<String, Object> table, String key, String where) {
        Object value = table.getOrDefault(key, true);
        if (!(value instanceof Boolean)) {
            throw wrong(where + "." + key, "true or false");
        }
        return (Boolean) value;
    }

    private static String one(
            Map<String, Object> table, String key, String otherwise, String where, String... allowed) {
        Object value = table.getOrDefault(key, otherwise);
        if (!Arrays.asList(allowed).contains(value)) {
            throw wrong(where + "." + key, "one of " + String.join(", ", allowed));
        }
        return (String) value;
    }

    private static double real(Object value, String where) {
        if (!(value instanceof Number)) {
            throw wrong(where, "a number");
        }
        return ((Number) value).doubleValue();
    }

    private static long whole(Object value, String where, long least, long most) {
        if (!(value instanceof Long) || (Long) value < least || (Long) value > most) {
            throw wrong(where, "a whole number from " + least + " to " + most);
        }
        return (Long) value;
    }
}
