"""The objective of a recipe, by training step."""

from __future__ import annotations

from functools import partial

from tinymusician.distill.objective import LossWeights, mixture
from tinymusician.distill.schedules import TemperatureSchedule, stage
from tinymusician.distill.task import HiddenLossConfig, ObjectiveConfig
from tinymusician.recipe import (
    FixedBiKLConfig,
    Objective,
    OnPolicyConfig,
    Recipe,
    StageMixedConfig,
    SwitchedBiKLConfig,
)


def objective_config(recipe: Recipe, steps: int, hidden: HiddenLossConfig | None = None) -> ObjectiveConfig:
    """The objective of the language model's stage, which has `steps` steps."""
    config = recipe.temperature
    temperature = TemperatureSchedule(config.initial, config.final, config.axis, steps)
    return ObjectiveConfig(
        partial(loss_weights_at, recipe.objective, steps), temperature, hidden, recipe.objective.hard
    )


def final_objective_config(recipe: Recipe) -> ObjectiveConfig:
    """The objective at the last step of the language model's stage, for the joint stage."""
    config, steps = recipe.temperature, recipe.training.steps
    initial = config.initial if config.axis == "sequence" else config.final
    temperature = TemperatureSchedule(initial, config.final, "sequence", steps)
    return ObjectiveConfig(
        lambda step: loss_weights_at(recipe.objective, steps, steps - 1), temperature, hard=recipe.objective.hard
    )


def on_policy_share(config: OnPolicyConfig, steps: int, step: int) -> float:
    """The on-policy share at a training step of `steps`."""
    return config.share * (1 - stage(step, round(config.begin * steps), round(config.ramp * steps)))


def loss_weights_at(objective: Objective, steps: int, step: int) -> LossWeights:
    """The objective's weights at a training step of `steps`."""
    alpha = 1.0
    if isinstance(objective, SwitchedBiKLConfig | StageMixedConfig):
        alpha = stage(step, round(objective.switch * steps), round(objective.transition * steps))
    if isinstance(objective, StageMixedConfig):
        return mixture(objective.name, alpha, beta=objective.beta, gamma=objective.gamma, skew=objective.skew)
    if isinstance(objective, FixedBiKLConfig):
        return mixture(objective.name, alpha, weight=objective.weight)
    return mixture(objective.name, alpha)
