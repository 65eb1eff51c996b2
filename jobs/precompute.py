"""The precompute job: the teacher's samples, and its logits on all training sequences, in shards in the store."""

from __future__ import annotations

import json

from jobs.pair import load_pair
from jobs.teacher import online, sequences, signal_shards
from jobs.worker import Context, fit
from tinymusician.artifacts.address import open_store
from tinymusician.artifacts.runs import RunFolder


def work(context: Context) -> None:
    """What each worker does: its share of the shards that are missing."""
    from tinymusician.distill.cached import signal_shard
    from tinymusician.distill.sequences import make_missing

    recipe = context.recipe
    pair = load_pair(recipe)
    pair.teacher.to(context.device)
    tokens = sequences(context, pair, "train")
    for split in ("validation", "test"):
        sequences(context, pair, split)
    shards, teacher = signal_shards(context, pair, tokens), online(context, pair, tokens)
    rows = len(tokens.codes)

    def told(index: int) -> None:
        print(f"signals: shard {index + 1} of {shards.count}", flush=True)
        context.run.tell("signals", shards.count - len(shards.missing()), shards.count)

    make_missing(
        shards,
        lambda index: signal_shard(teacher, index, rows, recipe.training.batch_size),
        context.rank,
        context.world,
        told,
    )
    context.meet()
    if context.rank == 0:
        figures = {"shards": shards.count, "rows": rows, "fingerprint": shards.fingerprint}
        context.run.store.put(context.run.key("result.json"), json.dumps({"metrics": figures}).encode())


def run(run_id: str) -> None:
    """The driver."""
    store = open_store()
    record = RunFolder(store, run_id).record()
    fit(work, store.url, run_id, record.workers, record.recipe["training"]["restarts"])
