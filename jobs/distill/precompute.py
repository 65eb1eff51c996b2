"""The precompute job: stores the teacher's samples, and its logits on those for training and validation."""

from __future__ import annotations

from jobs.distill.models import TeacherStudent, input_digests, load_models, shard_teacher
from jobs.distill.teacher import make_sequences, make_shards, open_sequences, signal_shard_cache, signal_shard_maker
from jobs.worker.context import WorkerContext
from jobs.worker.ray_train import run_ray_train
from jobs.worker.same_inputs import check_same_inputs
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.data.shards import ShardCache
from tinymusician.data.splits import SPLITS, Split
from tinymusician.data.tokens import TokenDataset


def work(context: WorkerContext) -> None:
    """Compute this worker's share of the missing shards."""
    models = load_models(context.recipe)
    check_same_inputs(context, input_digests(context.recipe, models))
    pair = shard_teacher(context, models)
    make_sequences(context, pair)
    context.barrier()
    tokens = {split: open_sequences(context, pair, split) for split in SPLITS}
    splits: tuple[Split, ...] = ("train", "validation")
    made = {split: precompute_signals(context, pair, split, tokens[split]) for split in splits}
    context.barrier()
    if context.rank == 0:
        metrics = {
            "shards": sum(shards.count for shards in made.values()),
            "rows": sum(len(tokens[split].codes) for split in made),
            "fingerprints": {split: shards.fingerprint for split, shards in made.items()},
        }
        context.run.write_result(RunResult(metrics=metrics))


def precompute_signals(context: WorkerContext, pair: TeacherStudent, split: Split, tokens: TokenDataset) -> ShardCache:
    """Compute this worker's share of the teacher's signals on one split's sequences."""
    shards = signal_shard_cache(context, pair, tokens)

    def on_progress(index: int) -> None:
        print(f"{split} signals: shard {index + 1} of {shards.count}", flush=True)
        context.run.report_progress(f"{split} signals", shards.count - len(shards.missing()), shards.count)

    make_shards(context, pair, shards, signal_shard_maker(context, pair, tokens), on_progress)
    return shards


def run(run_id: str) -> None:
    """The driver."""
    run_ray_train(work, RunStore(open_store(), run_id))
