package ai.onnxruntime;

/** Stands in for onnxruntime's class of this name in the tests. */
public class TensorInfo {
    private final long[] shape;

    TensorInfo(long[] shape) {
        this.shape = shape;
    }

    public long[] getShape() {
        return shape.clone();
    }
}
