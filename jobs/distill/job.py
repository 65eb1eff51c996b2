"""The distill job: samples from the teacher, trains the student on Ray Train, and publishes it as an artifact."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from jobs.distill.batch_inference import compute_on_pool
from jobs.distill.components import StudentComponents, train_components, train_jointly
from jobs.distill.finalize import MONITOR, finish, load_distilled
from jobs.distill.models import TeacherStudent, input_digests, load_models, new_student, shard_teacher
from jobs.distill.signals import open_signals
from jobs.distill.teacher import make_sequences, open_sequences, sequences_digest
from jobs.distill.teacher_actors import TeacherPool
from jobs.worker.context import WorkerContext
from jobs.worker.ray_train import NO_SIDECARS, SidecarActors, run_training_driver
from jobs.worker.same_inputs import check_same_inputs
from jobs.worker.stage import TrainingStage, train, trainer_config
from tinymusician.artifacts.authenticated_store import run_facts
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.data.shards import ShardCache
from tinymusician.data.tokens import TokenDataset
from tinymusician.recipe import ActorSignalsConfig, Recipe, parse_recipe

if TYPE_CHECKING:
    from tinymusician.distill.on_policy import OnPolicySampler
    from tinymusician.distill.task import DistillTask, ObjectiveConfig


def work(context: WorkerContext) -> None:
    """Sample the sequences that the store lacks, then train the student's components in order."""
    import torch

    from jobs.distill.objective import objective_config
    from tinymusician.distill.task import HiddenLossConfig
    from tinymusician.training.engine import AdamConfig

    recipe = context.recipe
    training, hidden = recipe.training, recipe.hidden
    torch.manual_seed(training.seed)
    models = load_models(recipe)
    check_same_inputs(context, input_digests(recipe, models))
    if recipe.signals.source == "online":
        models = shard_teacher(context, models)
        make_sequences(context, models)
        context.barrier()
    train_tokens, held_out = open_sequences(context, models, "train"), open_sequences(context, models, "validation")
    digests = {"training sequences": sequences_digest(train_tokens), "validation sequences": sequences_digest(held_out)}
    check_same_inputs(context, digests)
    if recipe.has_small_components:
        components = train_components(context, models.teacher, train_tokens, held_out)
        models = models._replace(student=new_student(recipe, models.teacher, components))
    width = models.teacher.config.decoder.hidden_size
    hidden_loss = HiddenLossConfig(hidden.kind, hidden.weight, width) if hidden.weight else None
    objective = objective_config(recipe, training.steps, hidden_loss)
    sampler = on_policy_sampler(context, models, train_tokens) if recipe.on_policy.share else None
    task = distill_task(context, models, objective, train_tokens, held_out, sampler)
    codes = training.batch_size * train_tokens.codes.shape[1] * train_tokens.codes.shape[2]
    flops = microbatch_flops(recipe, models, train_tokens.codes.shape[2])
    config = trainer_config(training, training.steps, training.learning_rate, MONITOR, codes, flops)
    adam = AdamConfig(weight_decay=training.weight_decay, max_grad_norm=training.max_grad_norm)
    precision = context.precision()
    train(context, TrainingStage("distill", task, config, adam, training.batch_size, training.zero_stage, precision))
    if recipe.joint.steps:
        del task  # and with it the optimizer's moments
        context.barrier()
        tune_jointly(context, models, components, train_tokens, held_out)


def microbatch_flops(recipe: Recipe, models: TeacherStudent, frames: int) -> float:
    """The floating-point operations of a microbatch on a worker's device."""
    from tinymusician.models.flops import distillation_flops
    from tinymusician.models.shape import decoder_shape

    teacher, student = (decoder_shape(model.config.to_dict()) for model in (models.teacher, models.student))
    rows, is_online = recipe.training.batch_size, recipe.signals.source == "online"
    student_rows = rows if recipe.teacher.target == "guided" else 2 * rows
    steps = frames + student.codebooks - 1
    return distillation_flops(teacher if is_online else None, student, student_rows, rows, steps)


def tune_jointly(
    context: WorkerContext,
    models: TeacherStudent,
    components: StudentComponents,
    train_tokens: TokenDataset,
    held_out: TokenDataset,
) -> None:
    """The joint stage, on a new student: an engine changes the module that it trained."""
    from jobs.distill.objective import final_objective_config

    recipe = context.recipe
    student = new_student(recipe, models.teacher.to("cpu"), components)
    load_distilled(context, student)
    models, objective = models._replace(student=student), final_objective_config(recipe)
    task = distill_task(context, models, objective, train_tokens, held_out)
    train_jointly(context, models.teacher, components, task, train_tokens, held_out)


def distill_task(
    context: WorkerContext,
    models: TeacherStudent,
    objective: ObjectiveConfig,
    train_tokens: TokenDataset,
    held_out: TokenDataset,
    sampler: OnPolicySampler | None = None,
) -> DistillTask:
    """The task of the language model; its source gives the teacher's states if the objective needs them."""
    from tinymusician.distill.guidance_scales import GuidanceSampler
    from tinymusician.distill.signals import SignalSet
    from tinymusician.distill.task import DistillTask

    training, guidance_range = context.recipe.training, context.recipe.teacher.guidance_range
    needs_states = objective.hidden is not None
    train_set, held_out_set = (
        SignalSet(open_signals(context, models, tokens, needs_states), len(tokens.codes))
        for tokens in (train_tokens, held_out)
    )
    scales = GuidanceSampler(*guidance_range) if guidance_range else None
    student = models.student.to(context.device)
    return DistillTask(student, train_set, held_out_set, objective, training.batch_size, training.seed, sampler, scales)


def on_policy_sampler(context: WorkerContext, models: TeacherStudent, tokens: TokenDataset) -> OnPolicySampler:
    """The sampler of the student's own samples, as the recipe schedules them."""
    from jobs.distill.objective import on_policy_share
    from tinymusician.distill.on_policy import OnPolicySampler, SamplingOptions

    recipe, teacher, batch_size = context.recipe, context.recipe.teacher, context.recipe.sequences.sampling_batch_size
    on_policy, steps, microbatches = recipe.on_policy, recipe.training.steps, recipe.training.microbatches
    one_pass = teacher.target == "guided"
    options = SamplingOptions(teacher.guidance_scale, one_pass, teacher.top_k, teacher.temperature, batch_size)
    shards = -(-steps // on_policy.refresh) * microbatches
    return OnPolicySampler(
        models.student,
        tokens,
        signals_of=partial(open_signals, context, models),
        share_at=partial(on_policy_share, on_policy, steps),
        refresh=on_policy.refresh,
        steps=steps,
        options=options,
        seed=recipe.training.seed,
        cache=ShardCache(context.run.store, "on-policy", run_facts(context.run.store, context.run_id), shards),
    )


def run(run: RunStore) -> RunResult:
    """The driver: actors sample, then all workers train, beside the teacher's actors if the recipe has them."""
    recipe = parse_recipe(run.record().recipe, run.id)
    signals = recipe.signals
    if signals.source == "online":
        compute_on_pool(run, recipe, ("sequences",))
    sidecars = SidecarActors(signals.actors, TeacherPool) if isinstance(signals, ActorSignalsConfig) else NO_SIDECARS
    return run_training_driver(run, work, finish, sidecars)
