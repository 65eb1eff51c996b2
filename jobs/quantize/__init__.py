"""The quantize job."""
