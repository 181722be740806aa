package edgekd.onnx;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import edgekd.Backend;
import edgekd.Sample;
import edgekd.StudentException;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;

/** The graph on onnxruntime: the one file that knows it. */
public final class OnnxBackend implements Backend {
    private final OrtEnvironment environment;
    private final OrtSession session;

    public OnnxBackend(byte[] graph, int threads) {
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            environment = OrtEnvironment.getEnvironment();
            environment.setTelemetry(false);
            options.setIntraOpNumThreads(threads);
            options.setInterOpNumThreads(1);
            session = environment.createSession(graph, options);
        } catch (OrtException error) {
            throw new StudentException("onnxruntime cannot load the graph: " + error.getMessage(), error);
        }
    }

    @Override
    public Map<String, Sample> run(String input, String dtype, Sample batch, List<String> outputs) {
        try (OnnxTensor tensor = tensor(dtype, batch);
                OrtSession.Result result =
                        session.run(Collections.singletonMap(input, tensor), new LinkedHashSet<>(outputs))) {
            Map<String, Sample> found = new LinkedHashMap<>();
            for (String name : outputs) {
                OnnxTensor value = (OnnxTensor) result.get(name).orElseThrow(
                        () -> new StudentException("the graph has no output '" + name + "'"));
                FloatBuffer numbers = value.getFloatBuffer();
                float[] values = new float[numbers.remaining()];
                numbers.get(values);
                int[] sides = Arrays.stream(value.getInfo().getShape()).mapToInt(Math::toIntExact).toArray();
                found.put(name, Sample.ofFloats(values, sides));
            }
            return found;
        } catch (OrtException error) {
            throw new StudentException("onnxruntime refuses the input: " + error.getMessage(), error);
        }
    }

    private OnnxTensor tensor(String dtype, Sample batch) throws OrtException {
        long[] shape = Arrays.stream(batch.shape()).asLongStream().toArray();
        if (dtype.equals("uint8")) {
            return OnnxTensor.createTensor(environment, ByteBuffer.wrap(batch.asBytes()), shape, OnnxJavaType.UINT8);
        }
        float[] values = batch.asFloats();
        if (dtype.equals("float32")) {
            return OnnxTensor.createTensor(environment, FloatBuffer.wrap(values), shape);
        }
        long[] whole = new long[values.length];
        for (int i = 0; i < whole.length; i++) {
            whole[i] = (long) values[i];
        }
        return OnnxTensor.createTensor(environment, LongBuffer.wrap(whole), shape);
    }

    @Override
    public void close() {
        try {
            session.close();
        } catch (OrtException error) {
            throw new StudentException("onnxruntime cannot close the graph: " + error.getMessage(), error);
        }
    }
}
