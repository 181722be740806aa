package android.content.res;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;

/** Stands in for Android's class of this name in the tests: a folder. */
public class AssetManager {
    private final Path folder;

    public AssetManager(Path folder) {
        this.folder = folder;
    }

    public InputStream open(String name) throws IOException {
        return Files.newInputStream(folder.resolve(name));
    }
}
