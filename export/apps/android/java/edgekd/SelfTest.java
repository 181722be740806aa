package edgekd;

import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.List;

/**
 * What a plain Java can prove of a bundle, without the runtime: every hash, and that preprocessing gives the golden
 * inputs. The graph itself is run by the test on a phone (androidTest). Exit: 0 done, 1 something differs, 2 usage, 3
 * refused.
 */
public final class SelfTest {
    private SelfTest() {
    }

    public static void main(String[] arguments) {
        System.exit(run(arguments));
    }

    static int run(String[] arguments) {
        if (arguments.length != 1) {
            System.err.println("usage: java -cp classes edgekd.SelfTest BUNDLE");
            return 2;
        }
        try {
            Bundle bundle = new Bundle(Files.open(Paths.get(arguments[0])));
            bundle.manifest.files.keySet().forEach(bundle::read);
            bundle.tokenizer();
            List<String> problems = new ArrayList<>();
            Student.checkPreprocessing(bundle.manifest, bundle.golden(), problems);
            problems.forEach(problem -> System.err.println("self-test FAILED: " + problem));
            if (problems.isEmpty()) {
                System.out.println("self-test passed: hashes are right and preprocessing gives the golden inputs; "
                        + "the graph was not run (gradle connectedAndroidTest does, on a phone)");
            }
            return problems.isEmpty() ? 0 : 1;
        } catch (StudentException error) {
            System.err.println("error: " + error.getMessage());
            return 3;
        }
    }
}
