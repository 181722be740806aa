package android.graphics;

import java.awt.image.BufferedImage;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import javax.imageio.ImageIO;

/** Stands in for Android's class of this name in the tests: the JDK decodes, and greys become three equal colours. */
public class BitmapFactory {
    public static Bitmap decodeByteArray(byte[] data, int offset, int length) {
        try {
            BufferedImage image = ImageIO.read(new ByteArrayInputStream(data, offset, length));
            if (image == null) {
                return null;
            }
            int width = image.getWidth(), height = image.getHeight();
            int[] pixels = image.getRGB(0, 0, width, height, null, 0, width);
            for (int i = 0; image.getRaster().getNumBands() == 1 && i < pixels.length;
                    i++) { // getRGB would change greys
                pixels[i] = 0xFF000000 | 0x10101 * image.getRaster().getSample(i % width, i / width, 0);
            }
            return new Bitmap(width, height, image.getColorModel().hasAlpha(), pixels);
        } catch (IOException error) {
            return null;
        }
    }
}
