"""The distillation job: sequences, a training stage on Ray Train, and the student as an artifact."""

from __future__ import annotations

from functools import partial
from typing import Any

from jobs.distill.components import StudentComponents, train_components, train_jointly
from jobs.distill.finalize import MONITOR, finish, load_distilled
from jobs.distill.models import TeacherStudent, load_models, new_student, shard_teacher
from jobs.distill.signals import open_signals
from jobs.distill.teacher import make_sequences, open_sequences
from jobs.distill.teacher_actors import TeacherPool
from jobs.worker.context import WorkerContext
from jobs.worker.ray_train import NO_SIDECARS, SidecarActors, run_training_driver
from jobs.worker.stage import TrainingStage, train, trainer_config
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.runs import RunStore
from tinymusician.data.shards import ShardCache
from tinymusician.data.tokens import TokenDataset
from tinymusician.recipe import (
    ActorSignalsConfig,
    FixedBiKLConfig,
    Objective,
    OnPolicyConfig,
    StageMixedConfig,
    SwitchedBiKLConfig,
    parse_recipe,
)


def work(context: WorkerContext) -> None:
    """What each worker does: sample what is missing, then train the student, part by part."""
    import torch

    from tinymusician.distill.task import DistillTask, HiddenLossConfig, TemperatureSchedule
    from tinymusician.training.engine import AdamConfig

    recipe = context.recipe
    training = recipe.training
    torch.manual_seed(training.seed)
    pair = load_models(recipe)
    if recipe.signals.source == "online":
        pair = shard_teacher(context, pair)
        make_sequences(context, pair)
        context.barrier()
    train_tokens, held_out = open_sequences(context, pair, "train"), open_sequences(context, pair, "validation")
    if recipe.has_small_parts:
        parts = train_components(context, pair.teacher, train_tokens, held_out)
        pair = pair._replace(student=new_student(recipe, pair.teacher, parts))
    hidden, steps = recipe.hidden, training.steps
    width = pair.teacher.config.decoder.hidden_size
    soft = TemperatureSchedule(recipe.temperature.initial, recipe.temperature.final, recipe.temperature.axis, steps)
    task = DistillTask(
        **objective(context, pair, train_tokens, held_out),
        mixture_at=partial(loss_weights_at, recipe.objective, steps),
        softening=soft,
        on_policy=on_policy_sampler(context, pair, train_tokens) if recipe.on_policy.share else None,
        hidden=HiddenLossConfig(hidden.kind, hidden.weight, width) if hidden.weight else None,
    )
    codes_a_part = training.batch_size * train_tokens.codes.shape[1] * train_tokens.codes.shape[2]
    plan = trainer_config(training, steps, training.learning_rate, MONITOR, codes_a_part)
    settings = AdamConfig(weight_decay=training.weight_decay, max_grad_norm=training.max_grad_norm)
    train(
        context,
        TrainingStage("distill", task, plan, settings, training.batch_size, training.zero_stage, context.precision()),
    )
    if recipe.joint.steps:
        del task  # with its engine's moments
        context.barrier()
        joint_tuning(context, pair, parts, train_tokens, held_out)


def joint_tuning(
    context: WorkerContext,
    pair: TeacherStudent,
    parts: StudentComponents,
    train_tokens: TokenDataset,
    held_out: TokenDataset,
) -> None:
    """The joint stage, on a student of its own: an engine leaves marks on the weights that it trained."""
    from tinymusician.distill.task import DistillTask, TemperatureSchedule

    recipe, soft = context.recipe, context.recipe.temperature
    student = new_student(recipe, pair.teacher.to("cpu"), parts)
    load_distilled(context, student)
    pair, steps = pair._replace(student=student), recipe.training.steps
    last = DistillTask(
        **objective(context, pair, train_tokens, held_out, followed=False),
        mixture_at=lambda step: loss_weights_at(recipe.objective, steps, steps - 1),
        softening=TemperatureSchedule(
            soft.initial if soft.axis == "sequence" else soft.final, soft.final, "sequence", steps
        ),
    )
    train_jointly(context, pair.teacher, parts, last, train_tokens, held_out)


def objective(
    context: WorkerContext,
    pair: TeacherStudent,
    train_tokens: TokenDataset,
    held_out: TokenDataset,
    followed: bool = True,
) -> dict[str, Any]:
    """Of a student's task, what does not change between its language model's training and the joint tuning.

    In the one its layers may be `followed`, in the other not.
    """
    from tinymusician.distill.task import GuidanceSampler

    training, ranged = context.recipe.training, context.recipe.teacher.guidance_range
    return {
        "student": pair.student.to(context.device),
        "train": open_signals(context, pair, train_tokens, followed),
        "train_rows": len(train_tokens.codes),
        "held_out": open_signals(context, pair, held_out, followed),
        "held_out_rows": len(held_out.codes),
        "batch_size": training.batch_size,
        "seed": training.seed,
        "scales": GuidanceSampler(*ranged) if ranged else None,
    }


def on_policy_sampler(context: WorkerContext, pair: TeacherStudent, tokens: TokenDataset) -> Any:
    """The student's own samples, as the recipe schedules them."""
    from tinymusician.distill.on_policy import OnPolicySampler

    recipe, teacher = context.recipe, context.recipe.teacher
    on_policy, steps, parts = recipe.on_policy, recipe.training.steps, recipe.training.parts or context.world
    facts = {"run": context.run_id}
    return OnPolicySampler(
        pair.student,
        tokens,
        judge=partial(open_signals, context, pair),
        share_at=partial(on_policy_share, on_policy, steps),
        refresh=on_policy.refresh,
        steps=steps,
        guidance=teacher.guidance_scale,
        one_pass=teacher.target == "guided",
        top_k=teacher.top_k,
        temperature=teacher.temperature,
        seed=recipe.training.seed,
        cache=ShardCache(context.run.store, "on-policy", facts, -(-steps // on_policy.refresh) * parts),
        at_once=recipe.sequences.sampling_batch_size,
    )


def on_policy_share(config: OnPolicyConfig, steps: int, step: int) -> float:
    """The on-policy share at a training step of `steps`."""
    from tinymusician.distill.schedules import stage

    return config.share * (1 - stage(step, round(config.begin * steps), round(config.ramp * steps)))


def loss_weights_at(objective: Objective, steps: int, step: int) -> Any:
    """The objective's weights at a training step of `steps`."""
    from tinymusician.distill.objective import mixture
    from tinymusician.distill.schedules import stage

    alpha = 1.0
    if isinstance(objective, SwitchedBiKLConfig | StageMixedConfig):
        alpha = stage(step, round(objective.switch * steps), round(objective.transition * steps))
    if isinstance(objective, StageMixedConfig):
        return mixture(objective.name, alpha, beta=objective.beta, gamma=objective.gamma, skew=objective.skew)
    if isinstance(objective, FixedBiKLConfig):
        return mixture(objective.name, alpha, weight=objective.weight)
    return mixture(objective.name, alpha)


def run(run_id: str) -> None:
    """The driver: training on the asked number of workers, beside the teacher's actors, then the report on one."""
    folder = RunStore(open_store(), run_id)
    open_signals = parse_recipe(folder.record().recipe, run_id).signals
    run_training_driver(
        folder,
        work,
        finish,
        SidecarActors(open_signals.actors, TeacherPool)
        if isinstance(open_signals, ActorSignalsConfig)
        else NO_SIDECARS,
    )
