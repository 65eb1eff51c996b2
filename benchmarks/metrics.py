"""What the metrics of a long run cost: a simulated week of rows.

    python -m benchmarks.metrics [--rows 400000] [--log-every 10] [--step-seconds 0.15]

Rows of a distillation go through the metrics log, with TensorBoard's event files, to a store in a folder, as fast as
they can; a row stands for `--log-every` steps of `--step-seconds`. A week of such steps is 400,000 rows.

    add_us_first, add_us_last      the training thread's time per row, in the first and the last tenth of the rows
    cpu_us_row                     processor time of all threads per row
    share_of_step_time             that time, over the time of the row's steps
    bytes_row, written_bytes_row   bytes of a row in the store, and bytes written for it
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.report import report
from jobs.worker.tensorboard import TensorBoardLogger
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore
from tinymusician.training.metrics import MetricsLog

FLUSH_ROWS = 7
"""Rows per write: with the defaults, a row comes every 1.5 s, and a write every 10 s."""


class CountingStore(LocalStore):
    """Counts the bytes that are written."""

    written = 0

    def put(self, key: str, data: bytes) -> None:
        """Count, and write."""
        self.written += len(data)
        super().put(key, data)

    def upload(self, path: Path, key: str) -> None:
        """Count, and write."""
        self.written += path.stat().st_size
        super().upload(path, key)


def row(step: int) -> dict[str, float]:
    """A row of distillation: losses and closeness by codebook, and the times of the steps."""
    names = ("loss", "kl", "agreement", "entropy", "cross_entropy")
    scalars = {f"{name}{suffix}": 1.2345678 for name in names for suffix in ("", "/1", "/2", "/3", "/4")}
    times = ("gradient_norm", "learning_rate", "step_seconds", "data_share", "codes_per_second", "memory_gib", "mfu")
    return {"step": step, **scalars, **dict.fromkeys(times, 0.7654321)}


def main() -> None:
    """Measure one week."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=400_000)
    options.add_argument("--log-every", type=int, default=10)
    options.add_argument("--step-seconds", type=float, default=0.15)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = CountingStore(Path(folder))
        run = RunStore(store, "week")
        log = MetricsLog(store, run.metrics_key(), -1, [TensorBoardLogger(run, "distill", -1)])
        added, began = [0.0] * chosen.rows, time.process_time()
        for number in range(chosen.rows):
            before = time.perf_counter()
            log.add(row(number))
            added[number] = time.perf_counter() - before
            if number % FLUSH_ROWS == 0:
                log.flush()
        log.flush()
        cpu = (time.process_time() - began) / chosen.rows
        size = sum(entry.size for entry in store.list("")) / chosen.rows
        tenth = chosen.rows // 10
        figures = {
            "add_us_first": sum(added[:tenth]) / tenth * 1e6,
            "add_us_last": sum(added[-tenth:]) / tenth * 1e6,
            "cpu_us_row": cpu * 1e6,
            "share_of_step_time": cpu / (chosen.log_every * chosen.step_seconds),
            "bytes_row": size,
            "written_bytes_row": store.written / chosen.rows,
        }
    report("metrics", figures, vars(chosen))


if __name__ == "__main__":
    main()
