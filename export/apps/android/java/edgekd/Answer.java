package edgekd;

import java.util.List;

/** What the model says about one sample. */
public final class Answer {
    /** The best label; null where a multilabel model finds none present, and for an embedding. */
    public final String label;
    /** Its place among the labels, or -1. */
    public final int index;
    /** Of the label; of an embedding the length of its vector. */
    public final float score;
    /** The top_k classes, the labels that are present, or all targets, with their scores. */
    public final List<String> topLabels;
    public final float[] topScores;
    /** For classes the entropy of their probabilities, 0 (sure of one) to 1 (all alike); else NaN. */
    public final double uncertainty;
    /** What the graph gave: the vector of an embedding. */
    public final float[] outputs;
    /** Everything; in a batch, the share of the whole. */
    public final double latencyMs;
    /** Whether the text was longer than the model reads: its end was not looked at. */
    public final boolean truncated;

    Answer(String label, int index, float score, List<String> topLabels, float[] topScores, double uncertainty,
            float[] outputs, double latencyMs, boolean truncated) {
        this.label = label;
        this.index = index;
        this.score = score;
        this.topLabels = topLabels;
        this.topScores = topScores;
        this.uncertainty = uncertainty;
        this.outputs = outputs;
        this.latencyMs = latencyMs;
        this.truncated = truncated;
    }
}
