"""What ONNX Runtime and the machine may do to somebody who plays, as one of our errors."""

from __future__ import annotations

from tinymusician.errors import EngineError


def as_engine_error(what: str, error: Exception) -> EngineError:
    """What went wrong while playing, in one line."""
    if isinstance(error, MemoryError) or "alloc" in str(error).lower():
        return EngineError(f"{what}: not enough memory")
    return EngineError(f"{what}: ONNX Runtime failed ({' '.join(str(error).split())[:300]})")
