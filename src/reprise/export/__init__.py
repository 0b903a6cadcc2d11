"""The published model as one ONNX file, from pixels to probabilities, and the check that it computes the same."""
