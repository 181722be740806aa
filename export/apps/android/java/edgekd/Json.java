package edgekd;

import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * JSON (RFC 8259), strict: no key twice in a table, numbers finite and within 64 bits, UTF-8 without halves of pairs.
 * Tables become LinkedHashMap, lists ArrayList, numbers Long or Double.
 */
final class Json {
    private static final int MAX_DEPTH = 64;
    private final String text;
    private final String name;
    private int at;

    private Json(String text, String name) {
        this.text = text;
        this.name = name;
    }

    /** The value that the bytes of the file `name` are. Throws StudentException. */
    static Object parse(byte[] data, String name) {
        final String text;
        try {
            text = StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(data)).toString();
        } catch (CharacterCodingException error) {
            throw new StudentException(
                    name + " is not readable as JSON (it is not UTF-8)" + StudentException.FRESH, error);
        }
        Json reader = new Json(text, name);
        Object value = reader.value(0);
        reader.skip();
        if (reader.at != text.length()) {
            throw reader.fail("something stands behind its end");
        }
        return value;
    }

    private StudentException fail(String why) {
        return new StudentException(
                name + " is not readable as JSON (" + why + " at character " + at + ")" + StudentException.FRESH);
    }

    private char peek() {
        return at < text.length() ? text.charAt(at) : '\0';
    }

    private void skip() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private boolean take(char c) {
        skip();
        if (at >= text.length() || text.charAt(at) != c) {
            return false;
        }
        at++;
        return true;
    }

    private void need(char c) {
        if (!take(c)) {
            throw fail("expected '" + c + "'");
        }
    }

    private Object value(int depth) {
        if (depth > MAX_DEPTH) {
            throw fail("it is nested too deep");
        }
        skip();
        char c = peek();
        if (c == '{') {
            return table(depth);
        }
        if (c == '[') {
            at++;
            List<Object> items = new ArrayList<>();
            if (!take(']')) {
                do {
                    items.add(value(depth + 1));
                } while (take(','));
                need(']');
            }
            return items;
        }
        if (c == '"') {
            return string();
        }
        if (c == '-' || digit(c)) {
            return number();
        }
        for (String word : new String[] {"true", "false", "null"}) {
            if (text.startsWith(word, at)) {
                at += word.length();
                return word.equals("null") ? null : (Object) word.equals("true");
            }
        }
        throw fail("expected a value");
    }

    private Map<String, Object> table(int depth) {
        at++;
        Map<String, Object> members = new LinkedHashMap<>();
        if (take('}')) {
            return members;
        }
        do {
            skip();
            if (peek() != '"') {
                throw fail("expected a key");
            }
            String key = string();
            need(':');
            if (members.containsKey(key)) {
                throw fail("a key stands twice in one table");
            }
            members.put(key, value(depth + 1));
        } while (take(','));
        need('}');
        return members;
    }

    private static boolean digit(char c) {
        return c >= '0' && c <= '9';
    }

    private void digits() {
        if (!digit(peek())) {
            throw fail("expected a digit");
        }
        while (digit(peek())) {
            at++;
        }
    }

    private Object number() {
        int start = at;
        boolean whole = true;
        if (peek() == '-') {
            at++;
        }
        if (peek() == '0') {
            at++;
        } else {
            digits();
        }
        if (peek() == '.') {
            whole = false;
            at++;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            whole = false;
            at++;
            if (peek() == '+' || peek() == '-') {
                at++;
            }
            digits();
        }
        String found = text.substring(start, at);
        try {
            if (whole) {
                return Long.valueOf(found);
            }
        } catch (NumberFormatException error) {
            throw fail("a number is too large");
        }
        double value = Double.parseDouble(found);
        if (Double.isInfinite(value)) {
            throw fail("a number is too large");
        }
        return value;
    }

    private String string() {
        StringBuilder result = new StringBuilder();
        at++;
        while (true) {
            if (at >= text.length()) {
                throw fail("a text does not end");
            }
            char c = text.charAt(at++);
            if (c == '"') {
                break;
            }
            if (c < 0x20) {
                throw fail("a text holds a control character");
            }
            result.append(c == '\\' ? escape() : c);
        }
        for (int i = 0; i < result.length(); i++) {
            char c = result.charAt(i);
            boolean pair = Character.isHighSurrogate(c) && i + 1 < result.length()
                    && Character.isLowSurrogate(result.charAt(i + 1));
            if (Character.isSurrogate(c) && !pair) {
                throw fail("half of a surrogate pair");
            }
            i += pair ? 1 : 0;
        }
        return result.toString();
    }

    private char escape() {
        char c = peek();
        at++;
        int place = "\"\\/bfnrt".indexOf(c);
        if (place >= 0 && c != '\0') {
            return "\"\\/\b\f\n\r\t".charAt(place);
        }
        if (c != 'u' || at + 4 > text.length()) {
            throw fail("an unknown escape");
        }
        int code = 0;
        for (int i = 0; i < 4; i++) {
            char digit = text.charAt(at++);
            int value = digit < 128 ? Character.digit(digit, 16) : -1;
            if (value < 0) {
                throw fail("expected four hexadecimal digits");
            }
            code = code * 16 + value;
        }
        return (char) code;
    }
}
