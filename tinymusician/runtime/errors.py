"""Exceptions of ONNX Runtime and the machine as `EngineError`."""

from __future__ import annotations

from tinymusician.errors import EngineError


def as_engine_error(what: str, error: Exception) -> EngineError:
    """An error in one line; `what` names the component that failed. One that is an `EngineError` already stays."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, MemoryError) or "alloc" in str(error).lower():
        return EngineError(f"{what}: not enough memory")
    return EngineError(f"{what}: ONNX Runtime failed ({' '.join(str(error).split())[:300]})")
