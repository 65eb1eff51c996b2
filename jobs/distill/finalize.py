"""The end of a distillation: metrics on the test prompts, and the best checkpoint as an artifact with its lineage."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.distill.components import MONITORS, component_metrics, load_components
from jobs.distill.models import TeacherStudent, load_models, new_student
from jobs.distill.teacher import online_signals, open_sequences
from jobs.worker.context import WorkerContext
from jobs.worker.ended_training import best_checkpoint, history_of
from tinymusician.artifacts.manifest import publish
from tinymusician.artifacts.run_state import RunResult
from tinymusician.data.prompts import load_prompts
from tinymusician.data.shards import fingerprint
from tinymusician.data.tokens import TokenDataset
from tinymusician.json_types import JsonObject
from tinymusician.models.licence import inherited_licence
from tinymusician.recipe import LayerSubset, Recipe

MONITOR = MONITORS["distill"]
"""The held-out metric that picks the best checkpoint."""

if TYPE_CHECKING:
    from tinymusician.models.protocols import Musicgen


def finish(context: WorkerContext) -> RunResult:
    """Publish the best checkpoint as an artifact with its metrics."""
    from tinymusician.distill.plots import plot_metrics
    from tinymusician.models.guidance import plays_in_one_pass, set_default_guidance
    from tinymusician.models.saving import save_musicgen

    recipe, store = context.recipe, context.run.store
    context.run.report_progress("report", 0, 3)
    pair = load_models(recipe)
    student = new_student(recipe, pair.teacher, load_components(context, pair.teacher))
    best_step = load_distilled(context, student)
    # A student of a guided target needs one pass, without guidance; a guidance-conditioned one has a default scale.
    one_scale = recipe.teacher.target == "guided" and recipe.teacher.guidance_range is None
    set_default_guidance(student, recipe.teacher.guidance_scale, one_scale or plays_in_one_pass(pair.teacher))
    distilled, rows = history_of(context, "distill"), context.run.metrics("distill")
    final = history_of(context, "joint") if recipe.joint.steps else distilled
    metrics = {"best_step": best_step, **held_out_metrics(distilled.initial, final.best)}
    if recipe.has_small_components:
        metrics |= component_metrics(context, pair.teacher, student)
    context.run.report_progress("report", 1, 3)
    metrics |= test_metrics(context, pair, student)
    context.run.report_progress("report", 2, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plot_metrics(rows, folder / "training.png")
        context.run.write_plot("training", folder / "training.png")
        save_musicgen(folder / "model", student.cpu(), pair.tokenizer)
        manifest = publish(
            store,
            folder / "model",
            name=recipe.name,
            kind="student",
            recipe=context.record.recipe,
            lineage=lineage(context, pair),
            metrics=metrics,
            licence=inherited_licence([recipe.teacher.model, getattr(recipe.student, "model", recipe.teacher.model)]),
        )
    context.run.report_progress("report", 3, 3)
    return RunResult(artifact=manifest.reference, metrics=metrics)


def load_distilled(context: WorkerContext, student: Musicgen) -> int:
    """Load the best checkpoint's language model into a student; returns its step.

    Raises:
        RunError: there is none.
    """
    from tinymusician.distill.hidden_states import PROJECTIONS
    from tinymusician.models.conditional_decoder import ConditionedDecoder

    best = best_checkpoint(context, "distill")
    weights = {name: value for name, value in best.state.weights.items() if not name.startswith(PROJECTIONS)}
    ConditionedDecoder(student).load_state_dict(weights)
    return int(best.step)


def held_out_metrics(first: Mapping[str, float], final: Mapping[str, float]) -> JsonObject:
    """The metrics on the validation prompts before training and at the best checkpoint."""
    num_codebooks = sum(name.startswith("kl/") for name in final)
    return {
        "kl_initial": first["kl"],
        "kl_final": final["kl"],
        "kl_per_codebook": [final[f"kl/{k + 1}"] for k in range(num_codebooks)],
        "agreement": final["agreement"],
        "cross_entropy_initial": first["cross_entropy"],
        "cross_entropy_final": final["cross_entropy"],
    }


def test_metrics(context: WorkerContext, pair: TeacherStudent, student: Musicgen) -> JsonObject:
    """On the test prompts: the KL along the teacher's samples, and statistics of free-running samples.

    `kl_test` uses the teacher's target of training, `kl_played` the distributions that teacher and student are sampled
    from. Teacher, untrained student and trained student have a cross-entropy and a code entropy each, in nats per code.
    """
    from tinymusician.distill.sampling_stats import sample_stats

    recipe, teacher = context.recipe, context.recipe.teacher
    test = open_sequences(context, pair, "test")
    if teacher.tensor_parallel_size > 1:  # one device does not hold the teacher
        context = replace(context, device="cpu")
    samples: JsonObject = {}
    for name, model in (("teacher", pair.teacher), ("untrained", pair.student), ("student", student)):
        model.to(context.device)
        sampling = (teacher.guidance_scale, teacher.top_k, teacher.temperature, recipe.training.seed)
        result = sample_stats(pair.teacher, model, test, *sampling, recipe.sequences.sampling_batch_size)
        samples[f"sample_cross_entropy_{name}"], samples[f"sample_code_entropy_{name}"] = result
    return _test_kl(context, pair, student, test) | samples  # the KL last: it may round the teacher's layers


def _test_kl(context: WorkerContext, pair: TeacherStudent, student: Musicgen, test: TokenDataset) -> JsonObject:
    """`kl_test` and `kl_played` with intervals; with a range of guidance scales, `kl_played@SCALE` for whole scales."""
    import torch

    from tinymusician.distill.closeness import held_out_kl
    from tinymusician.distill.guidance_scales import FixedScaleSource, integer_scales
    from tinymusician.distill.sampling_stats import sampling_logits
    from tinymusician.distill.signals import TeacherSignals, condition
    from tinymusician.evaluate.bootstrap import mean_interval
    from tinymusician.models.conditional_decoder import ConditionedDecoder

    teacher = context.recipe.teacher
    decoder = ConditionedDecoder(student.to(context.device)).eval()
    rows, batch = len(test.codes), context.recipe.training.batch_size

    def plain(signals: TeacherSignals) -> torch.Tensor:
        text = condition(student, signals.sequences)
        logits: torch.Tensor = decoder(signals.sequences.inputs, text.states, text.mask, signals.sequences.scale)
        return logits

    with torch.no_grad():
        both = online_signals(context, pair, test, "conditional")
        played = {
            scale: held_out_kl(
                FixedScaleSource(both, scale), rows, batch, lambda s: sampling_logits(student, decoder, s.sequences)
            )
            for scale in {teacher.guidance_scale, *integer_scales(teacher.guidance_range)}
        }
        kl = {"kl_test": played[teacher.guidance_scale], "kl_played": played[teacher.guidance_scale]}
        if not teacher.guidance_range:
            kl["kl_test"] = held_out_kl(online_signals(context, pair, test), rows, batch, plain)
    kl |= {f"kl_played@{scale:g}": values for scale, values in sorted(played.items()) if len(played) > 1}
    metrics: JsonObject = {}
    for name, values in kl.items():
        interval = mean_interval(values)
        metrics |= {name: interval.value, f"{name}_interval": [interval.low, interval.high]}
    return metrics


def lineage(context: WorkerContext, pair: TeacherStudent) -> JsonObject:
    """The origin of a student."""
    from tinymusician.models.musicgen import model_commit
    from tinymusician.models.prune_layers import weights_digest

    recipe, record = context.recipe, context.record
    return {
        "run": record.id,
        "teacher": recipe.teacher.model,
        "teacher_sha256": pair.teacher_digest,
        "teacher_commit": model_commit(recipe.teacher.model),
        **(
            {}
            if isinstance(recipe.student, LayerSubset)
            else _initial_weights_lineage(recipe, weights_digest(pair.student))
        ),
        "prompts": recipe.sequences.prompts,
        "prompts_sha256": fingerprint({"prompts": [prompt.text for prompt in load_prompts(recipe.sequences.prompts)]}),
        "clips": recipe.sequences.clips,
        "versions": record.versions,
        "git": record.git,
        "seeds": record.seeds,
    }


def _initial_weights_lineage(recipe: Recipe, digest: str) -> dict[str, str | None]:
    """The initial weights of a student that was not pruned from its teacher."""
    from tinymusician.models.musicgen import model_commit

    model = getattr(recipe.student, "model", None)
    named = {"started_from": model, "started_from_commit": model_commit(model)} if model else {}
    return {"started_from_sha256": digest, **named}
