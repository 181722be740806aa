package ai.onnxruntime;

/** Stands in for onnxruntime's class of this name in the tests. */
public class OrtException extends Exception {
    private static final long serialVersionUID = 1;

    public OrtException(String text) {
        super(text);
    }
}
