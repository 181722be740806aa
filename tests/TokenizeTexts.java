package edgekd;

import java.io.BufferedInputStream;
import java.io.DataInputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.StringJoiner;

/**
 * TokenizeTexts TOKENIZER MAX_LENGTH: texts from the input, each its number of UTF-16 units and the units; the ids of
 * each on a line, after the padding's and whether the text was too long.
 */
public final class TokenizeTexts {
    private TokenizeTexts() {
    }

    public static void main(String[] arguments) throws IOException {
        StringBuilder lines = new StringBuilder();
        try (DataInputStream given = new DataInputStream(new BufferedInputStream(System.in))) {
            Tokenizer tokenizer = new Tokenizer(Files.readAllBytes(Paths.get(arguments[0])));
            for (int count = given.readInt(); count >= 0; count = given.readInt()) {
                char[] units = new char[count];
                for (int i = 0; i < count; i++) {
                    units[i] = given.readChar();
                }
                Tokenizer.Tokens tokens = tokenizer.encode(new String(units), Integer.parseInt(arguments[1]));
                StringJoiner line = new StringJoiner(" ", "", "\n");
                line.add(Integer.toString(tokenizer.pad)).add(tokens.truncated ? "1" : "0");
                for (int id : tokens.ids) {
                    line.add(Integer.toString(id));
                }
                lines.append(line);
            }
        } catch (StudentException error) {
            System.err.println("error: " + error.getMessage());
            System.exit(3);
        }
        System.out.print(lines);
    }
}
