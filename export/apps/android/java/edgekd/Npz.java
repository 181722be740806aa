package edgekd;

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.zip.ZipEntry;
import java.util.zip.ZipInputStream;

/** Arrays of plain numbers as numpy writes them; never a pickle. */
final class Npz {
    private static final Pattern HEADER = Pattern.compile(
            "\\{'descr': '([<|][buif][1248])', 'fortran_order': (True|False), 'shape': \\(([0-9, ]*)\\),? ?\\}\\s*");

    private Npz() {
    }

    static Map<String, Sample> read(byte[] data, String name) {
        Map<String, Sample> arrays = new HashMap<>();
        long left = Sample.MAX_NUMBERS;
        try (ZipInputStream zip = new ZipInputStream(new ByteArrayInputStream(data))) {
            for (ZipEntry entry = zip.getNextEntry(); entry != null; entry = zip.getNextEntry()) {
                byte[] raw = Source.read(zip, entry.getName(), left);
                left -= raw.length;
                arrays.put(entry.getName().replaceAll("\\.npy$", ""), array(raw, entry.getName()));
            }
        } catch (IOException | IllegalArgumentException error) {
            throw new StudentException(
                    name + " cannot be read (" + error.getMessage() + ")" + StudentException.FRESH, error);
        }
        return arrays;
    }

    static Sample array(byte[] raw, String name) {
        ByteBuffer buffer = ByteBuffer.wrap(raw).order(ByteOrder.LITTLE_ENDIAN);
        boolean known = raw.length >= 12 && (raw[0] & 255) == 0x93 && raw[7] == 0 && (raw[6] == 1 || raw[6] == 2)
                && new String(raw, 1, 5, StandardCharsets.US_ASCII).equals("NUMPY");
        int start = known && raw[6] == 2 ? 12 : 10;
        int length = !known ? 0 : start == 12 ? buffer.getInt(8) : buffer.getShort(8) & 65535;
        if (!known || length < 0 || length > raw.length - start) {
            throw refuse(name, "its first bytes are others, or it is cut short");
        }
        Matcher header = HEADER.matcher(new String(raw, start, length, StandardCharsets.ISO_8859_1));
        if (!header.matches() || header.group(3).length() > 200) {
            throw refuse(name, "found another header");
        }
        String[] sides = header.group(3).replace(" ", "").isEmpty() ? new String[0] : header.group(3).split(",");
        int[] shape = new int[sides.length];
        for (int axis = 0; axis < shape.length; axis++) {
            try {
                shape[axis] = Integer.parseInt(sides[axis].trim());
            } catch (NumberFormatException error) {
                throw refuse(name, "found another shape");
            }
        }
        String type = header.group(1).substring(1);
        int size = type.charAt(1) - '0', count = Sample.count(shape);
        if ((long) count * size != raw.length - start - length) {
            throw refuse(name, "it holds another number of bytes than its shape says");
        }
        int[] places = places(shape, count, header.group(2).equals("True"));
        int from = start + length;
        if (type.equals("u1")) {
            byte[] bytes = new byte[count];
            for (int i = 0; i < count; i++) {
                bytes[i] = raw[from + places[i]];
            }
            return Sample.ofBytes(bytes, shape);
        }
        float[] floats = new float[count];
        for (int i = 0; i < count; i++) {
            floats[i] = number(buffer, from + places[i] * size, type, name);
        }
        return Sample.ofFloats(floats, shape);
    }

    /** Where each number lies: with Fortran's order the first axis runs fastest. */
    private static int[] places(int[] shape, int count, boolean fortran) {
        int[] places = new int[count], index = new int[shape.length];
        for (int i = 0; i < count; i++) {
            places[i] = i;
            if (!fortran) {
                continue;
            }
            int place = 0;
            for (int axis = shape.length - 1; axis >= 0; axis--) {
                place = place * shape[axis] + index[axis];
            }
            places[i] = place;
            for (int axis = shape.length - 1; axis >= 0 && ++index[axis] == shape[axis]; axis--) {
                index[axis] = 0;
            }
        }
        return places;
    }

    private static float number(ByteBuffer buffer, int at, String type, String name) {
        switch (type) {
            case "f4":
                return buffer.getFloat(at);
            case "f8":
                return (float) buffer.getDouble(at);
            case "i8":
                return buffer.getLong(at);
            case "i4":
                return buffer.getInt(at);
            case "u4":
                return buffer.getInt(at) & 0xFFFFFFFFL;
            case "i2":
                return buffer.getShort(at);
            case "u2":
                return buffer.getShort(at) & 65535;
            case "i1":
            case "b1":
                return buffer.get(at);
            default:
                throw refuse(name, "numbers of type " + type + " are not read here");
        }
    }

    private static StudentException refuse(String name, String why) {
        return new StudentException(name + " is no array of numbers (" + why + ")" + StudentException.FRESH);
    }
}
