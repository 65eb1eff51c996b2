"""ONNX Runtime's inference session, as far as the engine uses it: ONNX Runtime is not typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]


class NodeArgument(Protocol):
    """An input or output of a graph; `shape` holds numbers, and names for dimensions that vary."""

    name: str
    type: str
    shape: Sequence[Any]


class Binding(Protocol):
    """Buffers that a session reads from and writes to."""

    def clear_binding_inputs(self) -> None: ...

    def clear_binding_outputs(self) -> None: ...

    def bind_ortvalue_input(self, name: str, value: object) -> None: ...

    def bind_ortvalue_output(self, name: str, value: object) -> None: ...


class Session(Protocol):
    """A loaded graph."""

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, Array]) -> list[Array]: ...

    def get_inputs(self) -> Sequence[NodeArgument]: ...

    def io_binding(self) -> Binding: ...

    def run_with_iobinding(self, binding: Binding) -> None: ...

    def get_outputs(self) -> Sequence[NodeArgument]: ...
