"""Works on ONNX graphs: clean, quantize, verify and inspect them, one's own or somebody else's. Never torch."""
