"""Options of the commands that run the engine."""

from __future__ import annotations

from typing import Annotated

import typer

from tinymusician.runtime.cpus import MAX_THREADS

Threads = Annotated[
    int, typer.Option(min=0, max=MAX_THREADS, help="CPU threads; 0 is as many as this process may use.")
]
