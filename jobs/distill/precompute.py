"""The precompute job: stores the teacher's samples, and its logits on those for training and validation."""

from __future__ import annotations

from jobs.distill.batch_inference import compute_on_pool, needs_gang
from jobs.distill.models import input_digests, load_models, shard_teacher
from jobs.distill.teacher import make_sequences, make_shards, signal_shards
from jobs.worker.actor_pool import run_once
from jobs.worker.context import WorkerContext
from jobs.worker.ray_train import run_ray_train
from jobs.worker.same_inputs import check_same_inputs
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.recipe import parse_recipe


def compute(run: RunStore) -> None:
    """Compute what the store lacks, on all workers of a run."""
    recipe = parse_recipe(run.record().recipe, run.id)
    if needs_gang(recipe):
        run_ray_train(work, run)
        return
    compute_on_pool(run, recipe, ("sequences", "signals"))
    run_once(work, run)


def work(context: WorkerContext) -> None:
    """Compute this worker's share of the missing shards, and write the job's result."""
    models = load_models(context.recipe)
    check_same_inputs(context, input_digests(context.recipe, models))
    pair = shard_teacher(context, models)
    make_sequences(context, pair)
    context.barrier()
    sets = signal_shards(context, pair)
    for split, shard_set in sets.items():
        make_shards(context, pair, f"{split} signals", shard_set)
    context.barrier()
    if context.rank == 0:
        metrics = {
            "shards": sum(each.shards.count for each in sets.values()),
            "fingerprints": {split: each.shards.fingerprint for split, each in sets.items()},
        }
        context.run.write_result(RunResult(metrics=metrics))


def run(run: RunStore) -> RunResult:
    """The driver. The metrics, which its workers wrote to the store, are for people; nothing of them is signed."""
    compute(run)
    return RunResult(metrics=run.result().metrics)
