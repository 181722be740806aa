package edgekd;

import java.util.Arrays;
import java.util.List;

/** From a sample to what the model reads: what training did, number for number. */
final class Preprocessing {
    /** An image in work: bytes in `bytes`, or else floats in `floats`. */
    private static final class Image {
        final int height, width, channels;
        final byte[] bytes;
        final float[] floats;

        Image(int height, int width, int channels, byte[] bytes, float[] floats) {
            this.height = height;
            this.width = width;
            this.channels = channels;
            this.bytes = bytes;
            this.floats = floats;
        }

        /** An empty one of another size and the same kind. */
        Image empty(int rows, int columns, int depth) {
            int count = Sample.count(rows, columns, depth);
            boolean plain = bytes != null;
            return new Image(rows, columns, depth, plain ? new byte[count] : null, plain ? null : new float[count]);
        }

        void copy(int into, Image from, int at, int count) {
            if (bytes != null) {
                System.arraycopy(from.bytes, at, bytes, into, count);
            } else {
                System.arraycopy(from.floats, at, floats, into, count);
            }
        }
    }

    private Preprocessing() {
    }

    /** One sample through decode (of an array), to_rgb, to_grey, resize and center_crop; bytes stay bytes. */
    static Sample prepare(List<Step> steps, Sample sample) {
        if (sample.shape.length == 0 || Sample.count(sample.shape) == 0) {
            throw new StudentException("found an array of shape " + Sample.text(sample.shape)
                    + ", expected at least one number on at least one axis");
        }
        if (steps.isEmpty() || !steps.get(0).isSpatial()) {
            return sample;
        }
        if (sample.shape.length != 2 && sample.shape.length != 3) {
            throw new StudentException(
                    "found an array of shape " + Sample.text(sample.shape) + ", expected an image (H, W) or (H, W, C)");
        }
        int channels = sample.shape.length == 2 ? 1 : sample.shape[2];
        Image image = new Image(sample.shape[0], sample.shape[1], channels, sample.bytes, sample.floats);
        for (Step step : steps) {
            image = step.isSpatial() ? spatial(step, image) : image;
        }
        int[] shape = {image.height, image.width, image.channels};
        return image.bytes != null ? Sample.ofBytes(image.bytes, shape) : Sample.ofFloats(image.floats, shape);
    }

    private static Image spatial(Step step, Image image) {
        switch (step.op) {
            case "decode":
                boolean transparent = image.channels == 2 || image.channels == 4;
                return image.bytes != null && transparent ? over(image, step.white ? 255 : 0) : image;
            case "resize":
                return resize(step, image);
            case "center_crop":
                return crop(step, image);
            default:
                return colours(step.op, image);
        }
    }

    /** Transparency (the last channel) composed over a grey, in Pillow's whole numbers. */
    private static Image over(Image image, int below) {
        int depth = image.channels - 1;
        Image result = image.empty(image.height, image.width, depth);
        for (int i = 0; i < image.height * image.width; i++) {
            int alpha = image.bytes[i * image.channels + depth] & 255;
            for (int c = 0; c < depth; c++) {
                int colour = image.bytes[i * image.channels + c] & 255;
                int total = colour * alpha * 128 + below * (255 - alpha) * 128 + 0x80 * 128;
                result.bytes[i * depth + c] = (byte) ((((total >> 8) + total) >> 8) >> 7);
            }
        }
        return result;
    }

    private static Image colours(String op, Image image) {
        int wanted = op.equals("to_rgb") ? 3 : 1;
        if (image.channels != 1 && image.channels != 3) {
            throw new StudentException(op + ": found " + image.channels + " channels, expected 1 or 3");
        }
        if (image.channels == wanted) {
            return image;
        }
        Image result = image.empty(image.height, image.width, wanted);
        for (int i = 0; i < image.height * image.width; i++) {
            if (wanted == 3) {
                for (int c = 0; c < 3; c++) {
                    result.copy(3 * i + c, image, i, 1);
                }
            } else if (image.bytes != null) {
                int red = image.bytes[3 * i] & 255, green = image.bytes[3 * i + 1] & 255;
                int blue = image.bytes[3 * i + 2] & 255;
                result.bytes[i] = (byte) ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16);
            } else {
                double red = image.floats[3 * i], green = image.floats[3 * i + 1], blue = image.floats[3 * i + 2];
                result.floats[i] =
                        (float) (red * (19595 / 65536.0) + green * (38470 / 65536.0) + blue * (7471 / 65536.0));
            }
        }
        return result;
    }

    private static Image crop(Step step, Image image) {
        int height = step.size[0], width = step.size[1];
        if (image.height < height || image.width < width) {
            throw new StudentException("center_crop: an image of " + image.height + " x " + image.width
                    + " is smaller than " + height + " x " + width + "; give a larger one");
        }
        // Half a pixel goes to the even side.
        int top = (int) Math.rint((image.height - height) / 2.0), left = (int) Math.rint((image.width - width) / 2.0);
        Image result = image.empty(height, width, image.channels);
        for (int y = 0; y < height; y++) {
            int from = ((top + y) * image.width + left) * image.channels;
            result.copy(y * width * image.channels, image, from, width * image.channels);
        }
        return result;
    }

    private static Image resize(Step step, Image image) {
        int height = step.size[0], width = step.size[step.size.length - 1];
        if (step.size.length == 1) {
            long shorter = Math.min(image.height, image.width), longer = Math.max(image.height, image.width);
            long other = step.size[0] * longer / shorter;
            if (other > Manifest.MAX_SIDE) {
                throw new StudentException(
                        "resize: the longer side would have " + other + " pixels; crop the image first");
            }
            height = image.height <= image.width ? step.size[0] : (int) other;
            width = image.height <= image.width ? (int) other : step.size[0];
        }
        if (step.filter.equals("nearest")) {
            int[] rows = nearest(image.height, height), columns = nearest(image.width, width);
            Image result = image.empty(height, width, image.channels);
            for (int y = 0; y < height; y++) {
                for (int x = 0; x < width; x++) {
                    int from = (rows[y] * image.width + columns[x]) * image.channels;
                    result.copy((y * width + x) * image.channels, image, from, image.channels);
                }
            }
            return result;
        }
        Image narrow = image.empty(image.height, width, image.channels);
        resample(step, image, narrow, image.height, image.width, width, image.channels);
        Image result = image.empty(height, width, image.channels);
        resample(step, narrow, result, 1, image.height, height, width * image.channels);
        return result;
    }

    /** The source pixel of each pixel, positions summed step by step as Pillow does. */
    private static int[] nearest(int old, int size) {
        double step = (double) old / size, at = step / 2;
        int[] places = new int[size];
        for (int i = 0; i < size; i++, at += step) {
            places[i] = Math.min((int) at, old - 1);
        }
        return places;
    }

    /** The axis `old` of (outer, old, inner) at another size, with Pillow's filter and its rounding. */
    private static void resample(Step step, Image from, Image into, int outer, int old, int size, int inner) {
        if (old == size) {
            into.copy(0, from, 0, outer * old * inner);
            return;
        }
        double scale = (double) old / size, stretch = step.antialias ? Math.max(scale, 1.0) : 1.0;
        double support = (step.filter.equals("bicubic") ? 2.0 : 1.0) * stretch;
        for (int i = 0; i < size; i++) {
            double centre = (i + 0.5) * scale;
            int first = Math.max((int) (centre - support + 0.5), 0),
                last = Math.min((int) (centre + support + 0.5), old);
            double[] weights = new double[last - first];
            double total = 0;
            for (int tap = 0; tap < weights.length; tap++) {
                weights[tap] = kernel(step.filter, (tap + first - centre + 0.5) / stretch);
                total += weights[tap];
            }
            for (int tap = 0; tap < weights.length; tap++) {
                weights[tap] /= total;
            }
            for (int o = 0; o < outer; o++) {
                weigh(from, (o * old + first) * inner, weights, into, (o * size + i) * inner, inner);
            }
        }
    }

    private static void weigh(Image from, int at, double[] weights, Image into, int place, int inner) {
        for (int c = 0; c < inner; c++) {
            int sum = 1 << 21;
            double exact = 0;
            for (int tap = 0; tap < weights.length; tap++) {
                if (from.bytes != null) {
                    int fixed = (int) (weights[tap] * (1 << 22) + Math.copySign(0.5, weights[tap]));
                    sum += (from.bytes[at + tap * inner + c] & 255) * fixed;
                } else {
                    exact += from.floats[at + tap * inner + c] * weights[tap];
                }
            }
            if (from.bytes != null) {
                into.bytes[place + c] = (byte) Math.max(0, Math.min(255, sum >> 22));
            } else {
                into.floats[place + c] = (float) exact;
            }
        }
    }

    private static double kernel(String filter, double signed) {
        double x = Math.abs(signed);
        if (filter.equals("bilinear")) {
            return Math.max(1.0 - x, 0.0);
        }
        if (x < 1.0) {
            return (1.5 * x - 2.5) * x * x + 1.0;
        }
        return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 : 0.0;
    }

    /** A batch (N, ...) through scale, normalize and layout, or of ids (N, T) through trim. */
    static Sample arithmetic(List<Step> steps, Sample batch) {
        boolean channels = steps.stream().anyMatch(step -> step.op.equals("layout") && !step.to.equals("flat"));
        int[] shape = batch.shape;
        if (shape.length == 3 && channels) {
            shape = new int[] {shape[0], shape[1], shape[2], 1};
        }
        float[] values = batch.asFloats().clone();
        for (Step step : steps) {
            if (step.op.equals("scale")) {
                float factor = (float) step.factor;
                for (int i = 0; i < values.length; i++) {
                    values[i] *= factor;
                }
            } else if (step.op.equals("normalize")) {
                normalize(step, values, shape[shape.length - 1]);
            } else if (step.op.equals("trim")) {
                values = trimmed(step, values, shape);
                shape = new int[] {shape[0], shape[0] == 0 ? 0 : values.length / shape[0]};
            } else if (step.op.equals("layout") && step.to.equals("flat")) {
                shape = new int[] {shape[0], shape[0] == 0 ? 0 : values.length / shape[0]};
            } else if (step.op.equals("layout")) {
                if (shape.length != 4) {
                    throw new StudentException(
                            "layout: found a batch of shape " + Sample.text(shape) + ", expected images (N, H, W, C)");
                }
                if (step.to.equals("CHW")) {
                    values = channelsFirst(values, shape);
                    shape = new int[] {shape[0], shape[3], shape[1], shape[2]};
                }
            }
        }
        return Sample.ofFloats(values, shape);
    }

    private static void normalize(Step step, float[] values, int last) {
        int means = step.mean.length, stds = step.std.length;
        if ((means != 1 && means != last) || (stds != 1 && stds != last)) {
            throw new StudentException("normalize: " + Math.max(means, stds) + " figures for a last axis of " + last
                    + "; give a sample that has as many");
        }
        for (int i = 0; i < values.length; i++) {
            values[i] = (values[i] - (float) step.mean[means == 1 ? 0 : i % last])
                    / (float) step.std[stds == 1 ? 0 : i % last];
        }
    }

    /** Without the columns at the end that are padding in every row; one stays. */
    private static float[] trimmed(Step step, float[] ids, int[] shape) {
        if (shape.length != 2 || shape[1] == 0) {
            throw new StudentException("trim: found a batch of shape " + Sample.text(shape) + ", expected ids (N, T)");
        }
        int kept = 1;
        for (int i = 0; i < ids.length; i++) {
            kept = ids[i] == step.pad ? kept : Math.max(kept, i % shape[1] + 1);
        }
        float[] result = new float[shape[0] * kept];
        for (int row = 0; row < shape[0]; row++) {
            System.arraycopy(ids, row * shape[1], result, row * kept, kept);
        }
        return result;
    }

    /** The ids of a text's tokens (T) at the length that training saw. */
    static Sample padded(Step step, Tokenizer tokenizer, Sample ids) {
        boolean fits = ids.shape.length == 1 && !ids.isBytes() && ids.shape[0] > 0 && ids.shape[0] <= step.maxLength;
        if (!fits) {
            throw new StudentException("found an array of shape " + Sample.text(ids.shape)
                    + ", expected a text, or 1 to " + step.maxLength + " ids of tokens");
        }
        float[] row = Arrays.copyOf(ids.floats, step.maxLength);
        Arrays.fill(row, ids.floats.length, row.length, tokenizer.pad);
        for (float id : row) {
            if (!(id >= 0 && id < tokenizer.size && id == Math.rint(id))) {
                throw new StudentException(
                        "found " + id + " among the ids, expected whole numbers from 0 to " + (tokenizer.size - 1));
            }
        }
        return Sample.ofFloats(row, step.maxLength);
    }

    private static float[] channelsFirst(float[] values, int[] shape) {
        int inner = shape[1] * shape[2], depth = shape[3];
        float[] moved = new float[values.length];
        for (int n = 0; n < shape[0]; n++) {
            for (int i = 0; i < inner; i++) {
                for (int c = 0; c < depth; c++) {
                    moved[(n * depth + c) * inner + i] = values[(n * inner + i) * depth + c];
                }
            }
        }
        return moved;
    }

    /** The graph's outputs (N, width) as scores: double inside, float out. */
    static float[] postprocess(List<Step> steps, float[] outputs, int width) {
        double[] values = new double[outputs.length];
        for (int i = 0; i < values.length; i++) {
            values[i] = outputs[i];
        }
        for (Step step : steps) {
            if (step.op.equals("softmax")) {
                for (int at = 0; at < values.length; at += width) {
                    softmax(values, at, width, step.temperature);
                }
            } else if (step.op.equals("sigmoid")) {
                for (int i = 0; i < values.length; i++) {
                    values[i] = 0.5 * (1.0 + Math.tanh(0.5 * values[i]));
                }
            } else if (step.op.equals("denormalize")) {
                int means = step.mean.length, stds = step.std.length;
                if ((means != 1 && means != width) || (stds != 1 && stds != width)) {
                    throw new StudentException("denormalize has other figures than outputs" + StudentException.FRESH);
                }
                for (int i = 0; i < values.length; i++) {
                    values[i] = values[i] * step.std[stds == 1 ? 0 : i % width] + step.mean[means == 1 ? 0 : i % width];
                }
            }
        }
        float[] scores = new float[values.length];
        for (int i = 0; i < scores.length; i++) {
            scores[i] = (float) values[i];
        }
        return scores;
    }

    private static void softmax(double[] values, int at, int width, double temperature) {
        double largest = Double.NEGATIVE_INFINITY, total = 0;
        for (int i = at; i < at + width; i++) {
            largest = Math.max(largest, values[i] / temperature);
        }
        for (int i = at; i < at + width; i++) {
            values[i] = Math.exp(values[i] / temperature - largest);
            total += values[i];
        }
        for (int i = at; i < at + width; i++) {
            values[i] /= total;
        }
    }
}
