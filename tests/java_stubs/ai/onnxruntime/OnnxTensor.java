package ai.onnxruntime;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;

/** Stands in for onnxruntime's class of this name in the tests. */
public class OnnxTensor implements OnnxValue {
    final long[] shape;
    final String dtype;
    final byte[] data;

    OnnxTensor(long[] shape, String dtype, byte[] data) {
        this.shape = shape.clone();
        this.dtype = dtype;
        this.data = data;
    }

    public static OnnxTensor createTensor(OrtEnvironment environment, FloatBuffer numbers, long[] shape)
            throws OrtException {
        ByteBuffer bytes = ByteBuffer.allocate(4 * numbers.remaining()).order(ByteOrder.LITTLE_ENDIAN);
        bytes.asFloatBuffer().put(numbers.duplicate());
        return new OnnxTensor(shape, "float32", bytes.array());
    }

    public static OnnxTensor createTensor(OrtEnvironment environment, LongBuffer numbers, long[] shape)
            throws OrtException {
        ByteBuffer bytes = ByteBuffer.allocate(8 * numbers.remaining()).order(ByteOrder.LITTLE_ENDIAN);
        bytes.asLongBuffer().put(numbers.duplicate());
        return new OnnxTensor(shape, "int64", bytes.array());
    }

    public static OnnxTensor createTensor(
            OrtEnvironment environment, ByteBuffer numbers, long[] shape, OnnxJavaType type) throws OrtException {
        byte[] bytes = new byte[numbers.remaining()];
        numbers.duplicate().get(bytes);
        return new OnnxTensor(shape, "uint8", bytes);
    }

    public FloatBuffer getFloatBuffer() {
        float[] values = new float[data.length / 4];
        ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(values);
        return FloatBuffer.wrap(values);
    }

    public TensorInfo getInfo() {
        return new TensorInfo(shape);
    }

    @Override
    public void close() {
    }
}
