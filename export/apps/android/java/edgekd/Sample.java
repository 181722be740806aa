package edgekd;

import java.util.Arrays;

/** Bytes (0 to 255) or floats in row order. Images are (H, W) or (H, W, C), RGB, transparency last. */
public final class Sample {
    static final int MAX_NUMBERS = 1 << 28;
    final int[] shape;
    final byte[] bytes;
    final float[] floats;

    private Sample(int[] shape, byte[] bytes, float[] floats) {
        this.shape = shape.clone();
        this.bytes = bytes;
        this.floats = floats;
        int found = bytes != null ? bytes.length : floats.length;
        if (count(shape) != found) {
            throw new StudentException(
                    "found " + found + " numbers for an array of shape " + text(shape) + "; give as many as it holds");
        }
    }

    public static Sample ofBytes(byte[] values, int... shape) {
        return new Sample(shape, values, null);
    }

    public static Sample ofFloats(float[] values, int... shape) {
        return new Sample(shape, null, values);
    }

    public int[] shape() {
        return shape.clone();
    }

    public boolean isBytes() {
        return bytes != null;
    }

    /** The bytes themselves, not to be written to; null for floats. */
    public byte[] asBytes() {
        return bytes;
    }

    /** The numbers as floats; not to be written to. */
    public float[] asFloats() {
        if (floats != null) {
            return floats;
        }
        float[] result = new float[bytes.length];
        for (int i = 0; i < result.length; i++) {
            result[i] = bytes[i] & 255;
        }
        return result;
    }

    /** A picture as its EXIF orientation (1 to 8) means it. */
    public Sample upright(int orientation) {
        if (orientation <= 1 || orientation > 8) {
            return this;
        }
        int height = shape[0], width = shape[1], channels = shape.length > 2 ? shape[2] : 1;
        boolean turned = orientation >= 5;
        int rows = turned ? width : height, columns = turned ? height : width;
        boolean flipX = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
        boolean flipY = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
        byte[] result = new byte[bytes.length];
        for (int y = 0; y < rows; y++) {
            for (int x = 0; x < columns; x++) {
                int fromY = turned ? x : y, fromX = turned ? y : x;
                fromY = flipY ? height - 1 - fromY : fromY;
                fromX = flipX ? width - 1 - fromX : fromX;
                System.arraycopy(
                        bytes, (fromY * width + fromX) * channels, result, (y * columns + x) * channels, channels);
            }
        }
        int[] sides = shape.clone();
        sides[0] = rows;
        sides[1] = columns;
        return ofBytes(result, sides);
    }

    static int count(int... shape) {
        long count = 1;
        for (int side : shape) {
            count *= side;
            if (side < 0 || count > MAX_NUMBERS) {
                throw new StudentException("an array of shape " + text(shape) + " is too large; scale it down first");
            }
        }
        return (int) count;
    }

    static String text(int... shape) {
        return Arrays.toString(shape).replace('[', '(').replace(']', ')');
    }
}
