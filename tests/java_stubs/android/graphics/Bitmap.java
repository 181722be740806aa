package android.graphics;

/** Stands in for Android's class of this name in the tests: pixels as ARGB. */
public class Bitmap {
    private final int width, height;
    private final boolean alpha;
    private final int[] pixels;

    public Bitmap(int width, int height, boolean alpha, int[] pixels) {
        this.width = width;
        this.height = height;
        this.alpha = alpha;
        this.pixels = pixels;
    }

    public int getWidth() {
        return width;
    }

    public int getHeight() {
        return height;
    }

    public boolean hasAlpha() {
        return alpha;
    }

    public void getPixels(int[] into, int offset, int stride, int x, int y, int columns, int rows) {
        System.arraycopy(pixels, 0, into, offset, columns * rows);
    }
}
