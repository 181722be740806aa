package edgekd.android;

import android.content.Context;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.media.ExifInterface;
import edgekd.Answer;
import edgekd.Sample;
import edgekd.Source;
import edgekd.Student;
import edgekd.StudentException;
import edgekd.onnx.OnnxBackend;
import java.io.ByteArrayInputStream;
import java.io.IOException;

/**
 * The student in an Android app: the bundle lies in its assets, pictures are Bitmaps, texts are Strings. The one file
 * that knows Android.
 */
public final class AndroidStudent implements AutoCloseable {
    private final Student student;

    /** The bundle in the assets as "student.edgekd", its variant for this CPU, one thread. */
    public AndroidStudent(Context context) {
        this(context, "student.edgekd", null, 1);
    }

    public AndroidStudent(Context context, String bundle, String variant, int threads) {
        Source assets = name -> context.getAssets().open(bundle + "/" + name);
        student = new Student(assets, OnnxBackend::new, variant, threads);
    }

    /** The student itself, for arrays, batches and the self-test. */
    public Student student() {
        return student;
    }

    /** The answer for a text, where the student reads texts. */
    public Answer predict(String text, int topK) {
        return student.predict(text, topK);
    }

    public Answer predict(Bitmap picture, int topK) {
        return student.predict(sample(picture), topK);
    }

    /** An encoded picture (JPEG, PNG, WebP, ...), turned as its EXIF orientation says. */
    public Answer predict(byte[] encoded, int topK) {
        Bitmap picture = BitmapFactory.decodeByteArray(encoded, 0, encoded.length);
        if (picture == null) {
            throw new StudentException("the picture cannot be decoded; remove or replace it");
        }
        return student.predict(sample(picture).upright(student.turnsPictures() ? orientation(encoded) : 1), topK);
    }

    @Override
    public void close() {
        student.close();
    }

    /** The pixels (H, W, 3), or (H, W, 4) where the picture may be transparent. */
    public static Sample sample(Bitmap picture) {
        int width = picture.getWidth(), height = picture.getHeight(), channels = picture.hasAlpha() ? 4 : 3;
        int[] pixels = new int[width * height];
        picture.getPixels(pixels, 0, width, 0, 0, width, height); // ARGB, not premultiplied
        byte[] bytes = new byte[pixels.length * channels];
        for (int i = 0; i < pixels.length; i++) {
            bytes[i * channels] = (byte) (pixels[i] >> 16);
            bytes[i * channels + 1] = (byte) (pixels[i] >> 8);
            bytes[i * channels + 2] = (byte) pixels[i];
            if (channels == 4) {
                bytes[i * channels + 3] = (byte) (pixels[i] >> 24);
            }
        }
        return Sample.ofBytes(bytes, height, width, channels);
    }

    private static int orientation(byte[] encoded) {
        try {
            return new ExifInterface(new ByteArrayInputStream(encoded))
                    .getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL);
        } catch (IOException error) {
            return ExifInterface.ORIENTATION_NORMAL; // a format without EXIF
        }
    }
}
