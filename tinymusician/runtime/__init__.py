"""The engine that devices, servers and evaluation share: prompt to tokens to audio with ONNX Runtime and NumPy."""
