"""The compression job: a model's graphs, what each of its groups minds, a plan, the parity gate, and a bundle.

Actors on all workers measure a share each of the plans to be tried; what was measured lies in the store, shard by
shard, and is not measured again. One of them then chooses, checks and publishes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from jobs.pool import Pool
from jobs.worker import Context
from tinymusician.artifacts.address import open_store
from tinymusician.artifacts.runs import RunFolder

if TYPE_CHECKING:
    from tinymusician.quantize.adaptive import Measurer


@dataclass(frozen=True)
class Unit:
    """A piece of the work; `share` is whose part of the trials is measured."""

    task: Literal["play", "measure", "publish"]
    share: int = 0


class Bench:
    """What an actor works with."""

    def __init__(self, context: Context) -> None:
        from jobs.compression import Compression

        context.run.tell("export", 0, 1)
        self._compression = Compression(context)

    @cached_property
    def _measurer(self) -> Measurer:
        """The float32 graphs on the sequences of the validation prompts, which are played if the store has none."""
        from tinymusician.quantize.adaptive import Measurer

        compression, asked = self._compression, self._compression.asked
        sequences = compression.sequences("validation", asked.sequences, asked.seconds)
        return Measurer(compression.exported, compression.manifest, sequences, compression.context.threads)

    def do(self, unit: Unit) -> None:
        """Do one unit, or what of it is not done yet."""
        compression, measurer = self._compression, self._measurer
        if unit.task == "measure":
            compression.measure(measurer, compression.trials(measurer), unit.share, compression.context.world)
        if unit.task == "publish":
            self._publish(measurer)

    def _publish(self, measurer: Measurer) -> None:
        from jobs.bundling import publish_bundle

        manifest, figures = publish_bundle(self._compression, measurer)
        content = json.dumps({"artifact": manifest.reference, "metrics": figures})
        run = self._compression.context.run
        run.store.put(run.key("result.json"), content.encode())


def run(run_id: str) -> None:
    """The driver."""
    store = open_store()
    record = RunFolder(store, run_id).record()
    pool = Pool(Bench, store.url, run_id, record.workers, record.recipe["training"]["restarts"])
    pool.do([Unit("play")])
    pool.do([Unit("measure", share) for share in range(record.workers)])
    pool.do([Unit("publish")])
