package edgekd;

import static edgekd.StudentException.FRESH;

import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Map;
import java.util.regex.Pattern;

/** A bundle: its checked manifest, and its files, hashed before they are used. */
final class Bundle {
    final Manifest manifest;
    private final Source source;

    Bundle(Source source) {
        this.source = source;
        this.manifest = Manifest.parse(source.read("bundle.json", Manifest.MAX_BYTES));
    }

    /** The file `name`, which the manifest must list in this size and with this hash. */
    byte[] read(String name) {
        Manifest.Listed listed = manifest.files.get(name);
        if (listed == null) {
            throw new StudentException("bundle.json does not list '" + name + "'" + FRESH);
        }
        byte[] data = source.read(name, listed.size);
        if (data.length != listed.size || !sha256(data).equals(listed.sha256)) {
            throw new StudentException(name + " was changed after the bundle was written" + FRESH);
        }
        return data;
    }

    /** What makes ids of texts; null where the model reads something else. */
    Tokenizer tokenizer() {
        Step first = manifest.preprocess.isEmpty() ? null : manifest.preprocess.get(0);
        return first == null || !first.isTokenize() ? null : new Tokenizer(read(first.file));
    }

    Map<String, Sample> golden() {
        return Npz.read(read(manifest.golden), manifest.golden);
    }

    /** The variant for a kind of CPU: the exact kind, else the longest pattern that fits. */
    String defaultVariant(String kind) {
        String best = null;
        for (String pattern : manifest.defaults.keySet()) {
            String expression = ("\\Q" + pattern.replace("\\E", "") + "\\E").replace("*", "\\E.*\\Q");
            boolean longer = best == null || pattern.length() > best.length();
            if (pattern.equals(kind) || (longer && Pattern.matches(expression, kind))) {
                best = pattern;
                if (pattern.equals(kind)) {
                    break;
                }
            }
        }
        if (best != null) {
            return manifest.defaults.get(best);
        }
        return manifest.variants.containsKey("float32") ? "float32" : manifest.variants.keySet().iterator().next();
    }

    /** The kind of this CPU as far as Java tells: "aarch64" on nearly every phone. */
    static String cpuKind() {
        String machine = System.getProperty("os.arch", "").toLowerCase(java.util.Locale.ROOT);
        if (machine.equals("arm64") || machine.equals("aarch64")) {
            return "aarch64";
        }
        return machine.equals("amd64") || machine.equals("x86_64") ? "x86_64" : machine;
    }

    private static String sha256(byte[] data) {
        try {
            StringBuilder text = new StringBuilder();
            for (byte one : MessageDigest.getInstance("SHA-256").digest(data)) {
                text.append(Character.forDigit((one >> 4) & 15, 16)).append(Character.forDigit(one & 15, 16));
            }
            return text.toString();
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error); // every Java has SHA-256
        }
    }
}
