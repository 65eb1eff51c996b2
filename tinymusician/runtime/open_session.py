"""Opens the graphs of bundles with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from tinymusician.errors import BundleError, EngineError
from tinymusician.runtime.cpus import engine_threads
from tinymusician.runtime.session import Session

MIN_ONNXRUNTIME_VERSION = (1, 27)
"""The oldest ONNX Runtime that plays every bundle."""


class SessionFactory:
    """Opens graphs on this machine, with one provider and one number of threads."""

    def __init__(self, threads: int = 0, provider: str = "CPUExecutionProvider") -> None:
        """With 0 `threads`, there are as many as this process may use."""
        import onnxruntime

        self._runtime, self._provider, self.version = onnxruntime, provider, str(onnxruntime.__version__)
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = engine_threads(threads)
        self._options.log_severity_level = 3

    def __call__(self, path: Path) -> Session:
        """Open a graph.

        Raises:
            BundleError: this ONNX Runtime cannot load it.
            EngineError: there is not enough memory.
        """
        try:
            session: Session = self._runtime.InferenceSession(str(path), self._options, providers=[self._provider])
        except MemoryError as error:
            raise EngineError(f"{path.name}: not enough memory to load it") from error
        except Exception as error:  # ONNX Runtime's exceptions for invalid graphs
            reason = " ".join(str(error).split())
            raise BundleError(
                f"bundle {path.parent}: {path.name} cannot be loaded by ONNX Runtime {self.version} ({reason})"
                f"{self.update_advice}"
            ) from error
        return session

    @property
    def is_older(self) -> bool:
        """Whether this ONNX Runtime is older than the one that plays every bundle."""
        return tuple(int(part) for part in self.version.split(".")[:2]) < MIN_ONNXRUNTIME_VERSION

    @property
    def update_advice(self) -> str:
        """What to do about an older ONNX Runtime, as the end of a message; nothing otherwise."""
        oldest = ".".join(map(str, MIN_ONNXRUNTIME_VERSION))
        return f"; ONNX Runtime {oldest} or newer plays every bundle" if self.is_older else ""
