package edgekd;

import java.io.IOException;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;

/** A bundle on a disk: a folder without links, or a zip whose entries have one name each. Nothing is unpacked. */
public final class Files {
    private Files() {
    }

    /** The folder or zip at `path`. Throws StudentException when it is neither. */
    public static Source open(Path path) {
        if (java.nio.file.Files.isDirectory(path)) {
            return name -> {
                Path place = path;
                for (String part : name.split("/")) {
                    place = place.resolve(part);
                    if (java.nio.file.Files.isSymbolicLink(place)) {
                        throw new IOException("it is, or lies behind, a symbolic link");
                    }
                }
                if (!java.nio.file.Files.isRegularFile(place, LinkOption.NOFOLLOW_LINKS)) {
                    throw new IOException("it is missing in " + path);
                }
                return java.nio.file.Files.newInputStream(place);
            };
        }
        if (!java.nio.file.Files.isRegularFile(path)) {
            throw new StudentException("no bundle at " + path + "; check the path");
        }
        try {
            ZipFile zip = new ZipFile(path.toFile());
            List<? extends ZipEntry> entries = Collections.list(zip.entries());
            Set<String> names = new HashSet<>();
            for (ZipEntry entry : entries) {
                if (!names.add(entry.getName())) {
                    zip.close();
                    throw new StudentException(
                            path + " holds '" + entry.getName() + "' twice" + StudentException.FRESH);
                }
            }
            return name -> {
                ZipEntry entry = zip.getEntry(name);
                if (entry == null) {
                    throw new IOException("it is missing in " + path);
                }
                return zip.getInputStream(entry);
            };
        } catch (IOException error) {
            throw new StudentException(
                    path + " is no bundle: expected a folder or a zip with a bundle.json (" + error.getMessage() + ")",
                    error);
        }
    }
}
