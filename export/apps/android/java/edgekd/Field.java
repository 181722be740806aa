package edgekd;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** A value in a tokenizer.json and its place there, so that what is refused is named. */
final class Field {
    static final long MAX_ID = (1 << 24) - 1; // float32 holds every one
    final Object value;
    final String where;

    Field(Object value, String where) {
        this.value = value;
        this.where = where;
    }

    static StudentException refused(String found, String expected) {
        return new StudentException(Tokenizer.FILE + ": " + found + ", expected " + expected
                + ": distil with a WordPiece tokenizer, as BERT's, or run this student in Python, where tokenizers "
                + "reads all kinds");
    }

    boolean isMissing() {
        return value == null;
    }

    /** The member `key` of a table, which may be missing. */
    Field get(String key) {
        return new Field(members().get(key), where.isEmpty() ? key : where + "." + key);
    }

    /** The member `key` of a table, shown as a key that somebody chose. */
    Field named(String key) {
        return new Field(members().get(key), where + "['" + key + "']");
    }

    Map<String, Field> table() {
        Map<String, Field> found = new LinkedHashMap<>();
        for (Object key : members().keySet()) {
            found.put((String) key, named((String) key));
        }
        return found;
    }

    List<Field> list() {
        List<Field> items = new ArrayList<>();
        for (Object item : (List<?>) expect(List.class, "a list")) {
            items.add(new Field(item, where + "[" + items.size() + "]"));
        }
        return items;
    }

    String text() {
        return (String) expect(String.class, "a text");
    }

    boolean flag() {
        return (Boolean) expect(Boolean.class, "true or false");
    }

    /** An id, or another number of that size. */
    int whole() {
        if (!(value instanceof Long) || (Long) value < 0 || (Long) value > MAX_ID) {
            throw refused(where + " is " + shown(), "a whole number from 0 to " + MAX_ID);
        }
        return ((Long) value).intValue();
    }

    /** Refuses a table of another type. */
    void expectType(String... types) {
        Field type = get("type");
        for (String one : types) {
            if (one.equals(type.value)) {
                return;
            }
        }
        throw refused(type.where + " is " + type.shown(), "'" + String.join("' or '", types) + "'");
    }

    String shown() {
        if (value instanceof String) {
            String text = (String) value;
            return '"' + (text.length() < 60 ? text : text.substring(0, 57) + "...") + '"';
        }
        if (value instanceof Map || value instanceof List) {
            return value instanceof Map ? "a table" : "a list";
        }
        return value == null ? "missing" : value.toString();
    }

    private Map<?, ?> members() {
        return (Map<?, ?>) expect(Map.class, "a table");
    }

    private Object expect(Class<?> kind, String expected) {
        if (!kind.isInstance(value)) {
            throw refused((where.isEmpty() ? "the file" : where) + " is " + shown(), expected);
        }
        return value;
    }
}
