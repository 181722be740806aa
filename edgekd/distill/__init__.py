"""Trains: models, losses, teachers, the engine, and the way out to ONNX. The only floor that imports torch."""
