package android.media;

import java.io.IOException;
import java.io.InputStream;

/** Stands in for Android's class of this name in the tests: the orientation that the tests' own pictures hold. */
public class ExifInterface {
    public static final String TAG_ORIENTATION = "Orientation";
    public static final int ORIENTATION_NORMAL = 1;
    private final int orientation;

    public ExifInterface(InputStream stream) throws IOException {
        byte[] data = stream.readAllBytes();
        int found = ORIENTATION_NORMAL;
        for (int i = 0; i + 11 < data.length && i < 200; i++) { // the tag 0x0112, one short, in either byte order
            if (data[i] == 1 && data[i + 1] == 0x12 && data[i + 3] == 3) {
                found = data[i + 9];
            } else if (data[i] == 0x12 && data[i + 1] == 1 && data[i + 2] == 3) {
                found = data[i + 8];
            }
        }
        orientation = found;
    }

    public int getAttributeInt(String tag, int otherwise) {
        return orientation;
    }
}
