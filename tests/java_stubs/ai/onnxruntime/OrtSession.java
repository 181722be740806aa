package ai.onnxruntime;

import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/**
 * Stands in for onnxruntime's class of this name in the tests: a process of Python with the real onnxruntime answers
 * (java_session.py). The system properties edgekd.python and edgekd.session name the two programs.
 */
public class OrtSession implements AutoCloseable {
    /** Stands in for onnxruntime's class of this name. */
    public static class SessionOptions implements AutoCloseable {
        int threads = 1;

        public void setIntraOpNumThreads(int count) throws OrtException {
            threads = count;
        }

        public void setInterOpNumThreads(int count) throws OrtException {
        }

        @Override
        public void close() {
        }
    }

    /** Stands in for onnxruntime's class of this name. */
    public static class Result implements AutoCloseable {
        private final Map<String, OnnxValue> values;

        Result(Map<String, OnnxValue> values) {
            this.values = values;
        }

        public Optional<OnnxValue> get(String name) {
            return Optional.ofNullable(values.get(name));
        }

        @Override
        public void close() {
        }
    }

    private final Process process;
    private final DataOutputStream to;
    private final DataInputStream from;

    OrtSession(byte[] graph, int threads) throws OrtException {
        try {
            process = new ProcessBuilder(System.getProperty("edgekd.python"), System.getProperty("edgekd.session"))
                              .redirectError(ProcessBuilder.Redirect.INHERIT)
                              .start();
            to = new DataOutputStream(new BufferedOutputStream(process.getOutputStream()));
            from = new DataInputStream(process.getInputStream());
            to.writeInt(threads);
            send(graph);
            to.flush();
            check();
        } catch (IOException error) {
            throw new OrtException(error.getMessage());
        }
    }

    public synchronized Result run(Map<String, OnnxTensor> inputs, Set<String> outputs) throws OrtException {
        try {
            Map.Entry<String, OnnxTensor> input = inputs.entrySet().iterator().next();
            to.writeUTF(input.getKey());
            to.writeUTF(input.getValue().dtype);
            to.writeInt(input.getValue().shape.length);
            for (long side : input.getValue().shape) {
                to.writeInt((int) side);
            }
            send(input.getValue().data);
            to.writeInt(outputs.size());
            for (String name : outputs) {
                to.writeUTF(name);
            }
            to.flush();
            check();
            Map<String, OnnxValue> values = new LinkedHashMap<>();
            for (String name : outputs) {
                long[] shape = new long[from.readInt()];
                for (int axis = 0; axis < shape.length; axis++) {
                    shape[axis] = from.readInt();
                }
                values.put(name, new OnnxTensor(shape, "float32", from.readNBytes(from.readInt())));
            }
            return new Result(values);
        } catch (IOException error) {
            throw new OrtException(error.getMessage());
        }
    }

    @Override
    public void close() throws OrtException {
        process.destroy();
    }

    private void send(byte[] data) throws IOException {
        to.writeInt(data.length);
        to.write(data);
    }

    private void check() throws IOException, OrtException {
        String problem = from.readUTF();
        if (!problem.isEmpty()) {
            throw new OrtException(problem);
        }
    }
}
