package edgekd;

/** What cannot be used, and what to do about it. */
public class StudentException extends RuntimeException {
    private static final long serialVersionUID = 1;
    static final String FRESH = "; get a fresh copy of the bundle";

    public StudentException(String text) {
        super(text);
    }

    public StudentException(String text, Throwable cause) {
        super(text, cause);
    }
}
