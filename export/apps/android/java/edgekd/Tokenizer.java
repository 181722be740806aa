package edgekd;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import java.util.stream.Stream;

/**
 * A Hugging Face tokenizer.json of BERT's kind (WordPiece): texts to the ids that the Python package tokenizers gives,
 * id for id. Other kinds are refused.
 */
final class Tokenizer {
    static final String FILE = "tokenizer.json";
    private static final int MAX_TEXT = 10_000_000;
    private static final List<String> PADS = Arrays.asList("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>");

    /** The ids of a text, without padding; whether it was longer than the model reads. */
    static final class Tokens {
        final int[] ids;
        final boolean truncated;

        Tokens(int[] ids, boolean truncated) {
            this.ids = ids;
            this.truncated = truncated;
        }
    }

    /** A token that is looked for in the text itself. */
    private static final class Added {
        final String content;
        final int id;
        final boolean lstrip;
        final boolean rstrip;

        Added(String content, int id, boolean lstrip, boolean rstrip) {
            this.content = content;
            this.id = id;
            this.lstrip = lstrip;
            this.rstrip = rstrip;
        }
    }

    /** The id that fills up short texts. */
    final int pad;
    /** One more than the largest id. */
    final int size;
    private final boolean clean, apart, strip, lowercase;
    private final Map<String, Integer> vocabulary = new HashMap<>();
    private final Map<String, Integer> following = new HashMap<>(); // within a word, without the prefix
    private final int longest, longestWord, unknown;
    // By their first unit, the longest first: those in the text as it came, and those in the normalized text.
    private final Map<Character, List<Added>> raw = new HashMap<>(), normalized = new HashMap<>();
    private final List<Integer> before = new ArrayList<>(), after = new ArrayList<>(); // special tokens

    /** Throws StudentException for what is no tokenizer.json, or one of another kind. */
    Tokenizer(byte[] data) {
        Field all = new Field(Json.parse(data, FILE), "");
        Field model = all.get("model"), normalizer = all.get("normalizer");
        model.expectType("WordPiece");
        all.get("pre_tokenizer").expectType("BertPreTokenizer");
        normalizer.expectType("BertNormalizer");
        clean = normalizer.get("clean_text").flag();
        apart = normalizer.get("handle_chinese_chars").flag();
        lowercase = normalizer.get("lowercase").flag();
        Field stripped = normalizer.get("strip_accents");
        strip = stripped.isMissing() ? lowercase : stripped.flag();
        String prefix = model.get("continuing_subword_prefix").text();
        longestWord = model.get("max_input_chars_per_word").whole();
        model.get("vocab").table().forEach((token, id) -> {
            vocabulary.put(token, id.whole());
            if (token.startsWith(prefix)) {
                following.put(token.substring(prefix.length()), id.whole());
            }
        });
        longest = vocabulary.keySet().stream().mapToInt(String::length).max().orElse(0);
        unknown = present(vocabulary, model.get("unk_token").text());
        Map<String, Integer> names = new HashMap<>(vocabulary);
        if (!all.get("added_tokens").isMissing()) {
            all.get("added_tokens").list().forEach(token -> add(token, names));
        }
        readTemplate(all.get("post_processor"));
        Field padding = all.get("padding");
        Object named = padding.isMissing() ? null : padding.get("pad_token").value;
        pad = Stream.concat(Stream.of(named), PADS.stream())
                      .filter(names::containsKey)
                      .map(names::get)
                      .findFirst()
                      .orElseThrow(() -> Field.refused("the padding is missing",
                              "a table 'padding', or one of the tokens " + String.join(", ", PADS)));
        size = 1 + names.values().stream().mapToInt(Integer::intValue).max().orElse(0);
    }

    /**
     * The ids of a text, with the tokenizer's special tokens around them, at most `maxLength`: what is too much at the
     * end is cut off. Half of a surrogate pair counts as U+FFFD.
     */
    Tokens encode(String text, int maxLength) {
        if (text.length() > MAX_TEXT) {
            throw new StudentException("the text has " + text.length() + " characters, expected at most " + MAX_TEXT
                    + "; pass a part of it");
        }
        int room = maxLength - before.size() - after.size();
        if (room < 1) {
            throw new StudentException("tokenize: max_length = " + maxLength
                    + " leaves no room beside the special tokens" + StudentException.FRESH);
        }
        List<Integer> ids = new ArrayList<>();
        split(whole(text), raw, ids, rest -> split(normalize(rest), normalized, ids, piece -> words(piece, ids, room)));
        Stream<Integer> kept = ids.stream().limit(room);
        int[] all = Stream.of(before.stream(), kept, after.stream())
                            .flatMap(part -> part)
                            .mapToInt(Integer::intValue)
                            .toArray();
        return new Tokens(all, ids.size() > room);
    }

    private static int present(Map<String, Integer> ids, String token) {
        if (!ids.containsKey(token)) {
            throw Field.refused("model.vocab['" + token + "'] is missing", "the id of the unknown token");
        }
        return ids.get(token);
    }

    private void add(Field token, Map<String, Integer> names) {
        String content = token.get("content").text();
        int id = names.getOrDefault(content, names.size()); // a new one is numbered as tokenizers does it
        if (token.get("id").whole() != id) {
            throw Field.refused(token.where + ".id is " + token.get("id").shown(), id + ", as tokenizers numbers it");
        }
        names.put(content, id);
        if (token.get("single_word").flag()) {
            throw Field.refused(token.where + ".single_word is true", "false");
        }
        boolean late = token.get("normalized").flag();
        Added added = new Added(late ? normalize(content) : content, id, token.get("lstrip").flag(),
                token.get("rstrip").flag());
        if (added.content.isEmpty()) {
            throw Field.refused(token.where + " is an empty token", "a text");
        }
        List<Added> alike =
                (late ? normalized : raw).computeIfAbsent(added.content.charAt(0), unit -> new ArrayList<>());
        alike.removeIf(other -> other.content.equals(added.content));
        alike.add(added);
        alike.sort(Comparator.comparingInt(other -> -other.content.length()));
    }

    /** The special tokens before and after a text. */
    private void readTemplate(Field post) {
        if (post.isMissing()) {
            return;
        }
        post.expectType("TemplateProcessing", "BertProcessing");
        if (post.get("type").value.equals("BertProcessing")) {
            before.add(second(post.get("cls")));
            after.add(second(post.get("sep")));
            return;
        }
        int seen = 0;
        for (Field piece : post.get("single").list()) {
            Field sequence = piece.get("Sequence");
            if (!sequence.isMissing()) {
                seen += "A".equals(sequence.get("id").value) ? 1 : 2;
                continue;
            }
            Field special = post.get("special_tokens").named(piece.get("SpecialToken").get("id").text());
            for (Field id : special.get("ids").list()) {
                (seen == 0 ? before : after).add(id.whole());
            }
        }
        if (seen != 1) {
            throw Field.refused("post_processor.single without one $A", "special tokens around one $A");
        }
    }

    private static int second(Field pair) {
        List<Field> items = pair.list();
        return (items.size() == 2 ? items.get(1) : new Field(null, pair.where + "[1]")).whole();
    }

    /** The text with U+FFFD for each half of a surrogate pair, as in every other language's UTF-8. */
    private static String whole(String text) {
        StringBuilder result = new StringBuilder(text.length());
        text.codePoints()
                .map(code -> code >= Character.MIN_SURROGATE && code <= Character.MAX_SURROGATE ? 0xFFFD : code)
                .forEachOrdered(result::appendCodePoint);
        return result.toString();
    }

    /** What lies between added tokens goes to `other`, the tokens themselves to `ids`. */
    private static void split(
            String text, Map<Character, List<Added>> wanted, List<Integer> ids, Consumer<String> other) {
        int done = 0;
        for (int at = 0; at < text.length() && !wanted.isEmpty();) {
            Added token = match(text, at, wanted);
            if (token == null) {
                at++;
                continue;
            }
            int start = at, end = at + token.content.length();
            at = end;
            while (token.lstrip && start > done && isWhite(text, start - 1)) {
                start--;
            }
            while (token.rstrip && end < text.length() && isWhite(text, end)) {
                end++;
            }
            if (start > done) {
                other.accept(text.substring(done, start));
            }
            ids.add(token.id);
            done = end;
        }
        if (done < text.length()) {
            other.accept(text.substring(done));
        }
    }

    private static Added match(String text, int at, Map<Character, List<Added>> wanted) {
        for (Added token : wanted.getOrDefault(text.charAt(at), Collections.emptyList())) {
            if (text.startsWith(token.content, at)) {
                return token;
            }
        }
        return null;
    }

    private static boolean isWhite(String text, int at) {
        return Characters.is(text.charAt(at), Characters.WHITE); // none lies beyond the first plane
    }

    /** BERT's normalizer: cleaned, without accents, in lower case. */
    private String normalize(String text) {
        StringBuilder kept = new StringBuilder(text.length());
        for (int at = 0, code; at < text.length(); at += Character.charCount(code)) {
            code = text.codePointAt(at);
            if (clean && Characters.is(code, Characters.REMOVED)) {
                continue;
            }
            if (apart && Characters.is(code, Characters.CHINESE)) {
                kept.append(' ').appendCodePoint(code).append(' ');
            } else {
                kept.appendCodePoint(clean && Characters.is(code, Characters.WHITE) ? ' ' : code);
            }
        }
        String result = strip ? Characters.withoutMarks(kept.toString()) : kept.toString();
        return lowercase ? Characters.lowered(result) : result;
    }

    /** The words and punctuation marks of a normalized text, as ids; it stops when there are more than `room`. */
    private void words(String text, List<Integer> ids, int room) {
        int start = 0;
        for (int at = 0, next; at < text.length() && ids.size() <= room; at = next) {
            int code = text.codePointAt(at);
            next = at + Character.charCount(code);
            if (!Characters.is(code, Characters.WHITE | Characters.PUNCTUATION)) {
                continue;
            }
            pieces(text.substring(start, at), ids);
            start = next;
            if (!Characters.is(code, Characters.WHITE)) {
                pieces(text.substring(at, next), ids);
            }
        }
        pieces(text.substring(start), ids);
    }

    /** One word as the longest tokens from its front; unknown as a whole where one is missing. */
    private void pieces(String word, List<Integer> ids) {
        int sound = ids.size();
        boolean isKnown = word.codePointCount(0, word.length()) <= longestWord;
        for (int start = 0; start < word.length() && isKnown;) {
            Map<String, Integer> known = start == 0 ? vocabulary : following;
            int end = Math.min(word.length(), start + longest);
            while (end > start && !known.containsKey(word.substring(start, end))) {
                end--;
            }
            isKnown = end > start;
            if (isKnown) {
                ids.add(known.get(word.substring(start, end)));
                start = end;
            }
        }
        if (!isKnown) {
            ids.subList(sound, ids.size()).clear();
            ids.add(unknown);
        }
    }
}
