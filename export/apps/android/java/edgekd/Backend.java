package edgekd;

import java.util.List;
import java.util.Map;

/** A loaded graph. Threads may call run at the same time. */
public interface Backend extends AutoCloseable {
    /** The named outputs for one input (N, ...) of "float32", "uint8" (bytes) or "int64" (whole floats). */
    Map<String, Sample> run(String input, String dtype, Sample batch, List<String> outputs);

    @Override void close();

    /** Opens a graph. */
    interface Factory {
        Backend open(byte[] graph, int threads);
    }
}
