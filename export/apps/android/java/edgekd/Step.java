package edgekd;

import java.util.Arrays;
import java.util.List;

/** One step of pre- or postprocessing; BUNDLE.md of edgekd says what each does. */
final class Step {
    static final List<String> SPATIAL = Arrays.asList("decode", "to_rgb", "to_grey", "resize", "center_crop");
    static final List<String> ARITHMETIC = Arrays.asList("scale", "normalize", "layout");
    static final List<String> FOR_TEXTS = Arrays.asList("tokenize", "trim");
    static final List<String> POST = Arrays.asList("softmax", "sigmoid", "denormalize", "threshold", "top_k");

    String op = "";
    String filter = "bilinear";
    String to = "CHW";
    boolean exif = true;
    boolean white;
    boolean antialias = true;
    /** Height and width, or the shorter side alone. */
    int[] size = {};
    double factor = 1.0 / 255.0;
    double temperature = 1.0;
    double value = 0.5;
    double[] mean = {0.0};
    double[] std = {1.0};
    String file = "";
    int maxLength = 128;
    int pad;

    /** Whether it makes ids of a text; such a step is the first. */
    boolean isTokenize() {
        return op.equals("tokenize");
    }

    boolean isSpatial() {
        return SPATIAL.contains(op);
    }
}
