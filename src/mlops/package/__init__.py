"""Package: a fitted pipeline becomes a sealed bundle, exact in ONNX."""
