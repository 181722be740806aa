package edgekd;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;

/** The files of a bundle by name: a folder, the assets of an app, or whatever else opens them. */
public interface Source {
    /** A stream of the file `name`. Throws IOException when it is not there or must not be read. */
    InputStream open(String name) throws IOException;

    /** At most `limit` bytes of a file; more end in an exception. */
    default byte[] read(String name, long limit) {
        try (InputStream stream = open(name)) {
            return read(stream, name, limit);
        } catch (IOException error) {
            throw new StudentException(
                    name + " cannot be read (" + error.getMessage() + ")" + StudentException.FRESH, error);
        }
    }

    static byte[] read(InputStream stream, String name, long limit) throws IOException {
        ByteArrayOutputStream data = new ByteArrayOutputStream();
        byte[] block = new byte[65536];
        for (int count = stream.read(block); count >= 0; count = stream.read(block)) {
            data.write(block, 0, count);
            if (data.size() > limit) {
                throw new StudentException(name + " is longer than " + limit + " bytes" + StudentException.FRESH);
            }
        }
        return data.toByteArray();
    }
}
