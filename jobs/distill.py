"""The distillation job: sequences, a training stage on Ray Train, and the student as an artifact."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jobs.worker import Context, Stage, fit, metrics_name, say, train
from tinymusician.artifacts.address import open_store
from tinymusician.artifacts.manifest import publish
from tinymusician.artifacts.runs import RunFolder
from tinymusician.data.prompts import load_prompts, texts_of
from tinymusician.data.scores import Split
from tinymusician.data.shards import ShardSet
from tinymusician.data.tokens import TokenSet
from tinymusician.errors import ModelError, RunError
from tinymusician.recipe import CutStudent, FixedBiKL, Objective, Recipe, StageMixed, SteppedBiKL


class Pair(NamedTuple):
    """Teacher and student with the tokenizer they share, and the digest of the teacher's weights."""

    teacher: Any
    student: Any
    tokenizer: Any
    teacher_digest: str


def load_pair(recipe: Recipe) -> Pair:
    """Load the teacher, and load or cut the student.

    Raises:
        ModelError, RecipeError: weights cannot be had, or the two do not fit together.
    """
    from tinymusician.models.musicgen import load_musicgen, load_tokenizer
    from tinymusician.models.student import check_pair, weights_digest

    teacher = load_musicgen(recipe.teacher.model)
    student = new_student(recipe, teacher)
    check_pair(teacher, student)
    check_length(recipe, teacher)
    return Pair(teacher, student, load_tokenizer(recipe.teacher.model), weights_digest(teacher))


def new_student(recipe: Recipe, teacher: Any) -> Any:
    """The student before any training: cut out of the teacher, or loaded."""
    from tinymusician.models.musicgen import load_musicgen
    from tinymusician.models.student import cut_student

    chosen = recipe.student
    return cut_student(teacher, chosen.layers) if isinstance(chosen, CutStudent) else load_musicgen(chosen.model)


def check_length(recipe: Recipe, teacher: Any) -> None:
    """The recipe's sequences must fit into the decoder's positions."""
    config = teacher.config.decoder
    longest = (config.max_position_embeddings - config.num_codebooks) / teacher.config.audio_encoder.frame_rate
    if recipe.sequences.seconds > longest:
        raise ModelError(
            f"sequences.seconds = {recipe.sequences.seconds:g}: the teacher's {config.max_position_embeddings} "
            f"positions hold at most {longest:.1f} s"
        )


def sequences(context: Context, pair: Pair, split: Split) -> TokenSet:
    """The sequences of one split: teacher samples, made where the store has none yet, mixed with clips for training."""
    from tinymusician.distill.sequences import TeacherSamples, make_missing, mix, read_clips, read_samples

    recipe = context.recipe
    part, asked, seed = recipe.sequences, recipe.teacher, recipe.training.seed
    frames = round(part.seconds * pair.teacher.config.audio_encoder.frame_rate)
    texts = texts_of(load_prompts(part.prompts), split)
    samples = part.samples if split == "train" else 1
    sampling = {"samples": samples, "frames": frames, "guidance": asked.guidance, "top_k": asked.top_k}
    sampling |= {"temperature": asked.temperature, "seed": seed, "shard_prompts": part.shard_prompts}
    source = TeacherSamples(pair.teacher, pair.tokenizer, texts, **sampling)
    facts = {"teacher": pair.teacher_digest, "texts": texts, **sampling}
    shards = ShardSet(context.run.store, "samples", facts, source.shards)

    def told(index: int) -> None:
        say(f"{split} samples: shard {index + 1} of {shards.count}")
        context.run.tell(f"{split} samples", index + 1, shards.count)

    make_missing(shards, source.make, context.rank, context.world, told)
    context.meet()
    tokens = read_samples(shards, context.cache)
    if split != "train" or part.clips is None:
        return tokens
    clips = read_clips(pair.teacher.audio_encoder, pair.tokenizer, Path(part.clips), frames)
    return mix(tokens, clips, part.clip_share)


def online(context: Context, pair: Pair, tokens: TokenSet) -> Any:
    """The teacher in this worker as a source of signals."""
    import torch

    from tinymusician.distill.signals import OnlineTeacher

    asked = context.recipe.teacher
    dtype = torch.bfloat16 if context.precision() == "bfloat16" else torch.float32
    return OnlineTeacher(pair.teacher.to(context.device), tokens, asked.target, asked.guidance, dtype)


def signal_shards(context: Context, pair: Pair, tokens: TokenSet) -> ShardSet:
    """The shards of the teacher's logits on `tokens`, known by teacher, target and the sequences themselves."""
    import hashlib

    from tinymusician.distill.cached import SHARD_ROWS, shard_count

    content = hashlib.sha256(tokens.codes.tobytes() + tokens.text_ids.tobytes() + tokens.text_mask.tobytes())
    asked = context.recipe.teacher
    facts: dict[str, Any] = {"teacher": pair.teacher_digest, "sequences": content.hexdigest(), "shard_rows": SHARD_ROWS}
    facts |= {"target": asked.target} | ({"guidance": asked.guidance} if asked.target == "guided" else {})
    return ShardSet(context.run.store, "signals", facts, shard_count(len(tokens.codes)))


def cached(context: Context, pair: Pair, tokens: TokenSet) -> Any:
    """Precomputed shards as a source of signals.

    Raises:
        RunError: some are not there yet.
    """
    from tinymusician.distill.cached import CachedTeacher

    shards = signal_shards(context, pair, tokens)
    if missing := shards.missing():
        raise RunError(
            f"signals.source = 'cached': {len(missing)} of {shards.count} shards are missing; run "
            f"`tmctl submit precompute` with the same recipe first, or set signals.source=online"
        )
    pad = pair.teacher.config.decoder.vocab_size
    return CachedTeacher(shards, tokens, context.recipe.teacher.target, pad, context.cache, context.device)


def work(context: Context) -> None:
    """What each worker does: sample what is missing, then train the student."""
    import torch

    from tinymusician.distill.task import DistillTask, Softening
    from tinymusician.training.engine import AdamSettings
    from tinymusician.training.loop import Plan

    recipe = context.recipe
    training = recipe.training
    torch.manual_seed(training.seed)
    pair = load_pair(recipe)
    pair.teacher.to(context.device)
    train_tokens, held_out = sequences(context, pair, "train"), sequences(context, pair, "validation")
    sequences(context, pair, "test")
    source = (cached if recipe.signals.source == "cached" else online)(context, pair, train_tokens)
    soft = recipe.temperature
    task = DistillTask(
        pair.student.to(context.device),
        train=source,
        train_rows=len(train_tokens.codes),
        held_out=online(context, pair, held_out),
        held_out_rows=len(held_out.codes),
        mixture_at=partial(mixture_at, recipe.objective, training.steps),
        softening=Softening(soft.initial, soft.final, soft.axis, training.steps),
        batch_size=training.batch_size,
        seed=training.seed,
    )
    codes = training.batch_size * train_tokens.codes.shape[1] * train_tokens.codes.shape[2]
    plan = Plan(
        steps=training.steps,
        peak_rate=training.learning_rate,
        warmup=training.warmup,
        log_every=training.log_every,
        validate_every=training.validate_every,
        checkpoint_every=training.checkpoint_every,
        judge="kl",
        codes_a_step=codes,
    )
    settings = AdamSettings(weight_decay=training.weight_decay, clip=training.clip)
    train(context, Stage("distill", task, plan, settings, training.batch_size, training.zero, context.precision()))


def mixture_at(objective: Objective, steps: int, step: int) -> Any:
    """The objective's weights at a training step of `steps`."""
    from tinymusician.distill.objective import mixture
    from tinymusician.distill.schedules import stage

    alpha = 1.0
    if isinstance(objective, SteppedBiKL | StageMixed):
        alpha = stage(step, round(objective.switch * steps), round(objective.transition * steps))
    if isinstance(objective, StageMixed):
        return mixture(objective.name, alpha, beta=objective.beta, gamma=objective.gamma, skew=objective.skew)
    if isinstance(objective, FixedBiKL):
        return mixture(objective.name, alpha, weight=objective.weight)
    return mixture(objective.name, alpha)


def finish(context: Context) -> None:
    """The best checkpoint becomes an artifact: a Hugging Face folder, its figures on the test prompts, its lineage."""
    import torch

    from tinymusician.distill.report import plot_metrics, sample_figures
    from tinymusician.distill.signals import condition
    from tinymusician.distill.task import held_out_closeness
    from tinymusician.models.musicgen import ConditionedDecoder
    from tinymusician.models.saving import save_musicgen
    from tinymusician.training.checkpoint import Checkpoints
    from tinymusician.training.metrics import read_metrics

    recipe, store = context.recipe, context.run.store
    checkpoints = Checkpoints(store, context.run.key("checkpoints/distill"))
    best = checkpoints.best()
    if best is None:
        raise RunError(f"run {context.run_id}: no checkpoint has held-out figures")
    context.run.tell("report", 0, 3)
    pair = load_pair(recipe)
    untrained, student = pair.student, new_student(recipe, pair.teacher)
    ConditionedDecoder(student).load_state_dict(best.state.weights)
    rows = read_metrics(store, context.run.key(metrics_name("distill")))
    held_out = [row for row in rows if "held_out/kl" in row]
    final = next(row for row in held_out if row["step"] == best.step)
    books = pair.teacher.config.decoder.num_codebooks
    figures: dict[str, Any] = {
        "best_step": best.step,
        "kl_initial": held_out[0]["held_out/kl"],
        "kl_final": final["held_out/kl"],
        "kl_per_codebook": [final[f"held_out/kl/{k + 1}"] for k in range(books)],
        "agreement": final["held_out/agreement"],
        "cross_entropy_initial": held_out[0]["held_out/cross_entropy"],
        "cross_entropy_final": final["held_out/cross_entropy"],
    }
    test = sequences(context, pair, "test")
    source = online(context, pair, test)
    decoder = ConditionedDecoder(student.to(context.device))

    def logits(signals: Any) -> Any:
        text = condition(student, signals.sequences)
        return decoder(signals.sequences.inputs, text.states, text.mask)

    with torch.no_grad():
        figures["kl_test"] = held_out_closeness(source, len(test.codes), recipe.training.batch_size, logits)["kl"]
    context.run.tell("report", 1, 3)
    for name, model in (("teacher", pair.teacher), ("untrained", untrained), ("student", student)):
        asked = recipe.teacher
        found = sample_figures(
            pair.teacher, model.to(context.device), test, asked.guidance, asked.top_k, recipe.training.seed
        )
        figures[f"sample_cross_entropy_{name}"], figures[f"sample_variety_{name}"] = found
    context.run.tell("report", 2, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plot_metrics(rows, folder / "training.png")
        store.upload(folder / "training.png", context.run.key("training.png"))
        model_folder = folder / "model"
        save_musicgen(model_folder, student.cpu(), pair.tokenizer)
        record = context.record
        manifest = publish(
            store,
            model_folder,
            name=recipe.name,
            kind="student",
            recipe=record.recipe,
            lineage={
                "run": record.id,
                "teacher": recipe.teacher.model,
                "teacher_sha256": pair.teacher_digest,
                "prompts": recipe.sequences.prompts,
                "clips": recipe.sequences.clips,
                "versions": record.versions,
                "git": record.git,
                "seeds": record.seeds,
            },
            metrics=figures,
            licence=licence_of(recipe.teacher.model),
        )
    store.put(context.run.key("result.json"), json.dumps({"artifact": manifest.reference, "metrics": figures}).encode())
    context.run.tell("report", 3, 3)


def licence_of(teacher: str) -> str:
    """The licence that a student inherits from its teacher's weights."""
    if Path(teacher).name.startswith("band-") or teacher.startswith("band-"):
        return "Apache-2.0 (weights made by this project; see the house band's model card for the data)"
    return "CC-BY-NC-4.0 (derived from MusicGen's weights)"


def run(run_id: str) -> None:
    """The driver: training on the asked number of workers, then the report on one."""
    store = open_store()
    record = RunFolder(store, run_id).record()
    restarts = record.recipe["training"]["restarts"]
    fit(work, store.url, run_id, record.workers, restarts)
    fit(finish, store.url, run_id, 1, restarts)
