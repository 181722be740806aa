package ai.onnxruntime;

/** Stands in for onnxruntime's class of this name in the tests. */
public enum OnnxJavaType { UINT8 }
