"""The compression job: a model's graphs, what each of its groups minds, a plan, the parity gate, and a bundle.

Every worker exports the same float32 graphs and measures its share of the plans to be tried; what was measured lies in
the store, shard by shard, and is not measured again. One worker then chooses, checks and publishes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from jobs.worker import Context, fit
from tinymusician.artifacts.address import open_store
from tinymusician.artifacts.runs import RunFolder

if TYPE_CHECKING:
    from jobs.compression import Compression
    from tinymusician.quantize.adaptive import Measurer


def work(context: Context) -> None:
    """What each worker does: its share of the measuring."""
    from jobs.compression import Compression

    context.run.tell("export", 0, 1)
    compression = Compression(context)
    measurer = measurer_of(compression)
    compression.measured(measurer, compression.trials(measurer))


def finish(context: Context) -> None:
    """What one worker does with what all of them measured: choose, check, publish."""
    from jobs.bundling import publish_bundle
    from jobs.compression import Compression

    compression = Compression(context)
    manifest, figures = publish_bundle(compression, measurer_of(compression))
    content = json.dumps({"artifact": manifest.reference, "metrics": figures})
    context.run.store.put(context.run.key("result.json"), content.encode())


def measurer_of(compression: Compression) -> Measurer:
    """The float32 graphs on the sequences of the validation prompts."""
    from tinymusician.quantize.adaptive import Measurer

    asked = compression.asked
    sequences = compression.sequences("validation", asked.sequences, asked.seconds)
    return Measurer(compression.exported, compression.manifest, sequences, compression.context.threads)


def run(run_id: str) -> None:
    """The driver: the measuring on the asked number of workers, the rest on one."""
    store = open_store()
    record = RunFolder(store, run_id).record()
    restarts = record.recipe["training"]["restarts"]
    fit(work, store.url, run_id, record.workers, restarts)
    fit(finish, store.url, run_id, 1, restarts)
