"""The recipe: everything a job depends on, typed, closed and checked before anything starts.

A recipe is a YAML file that says what differs from the defaults of its parts; `--set part.key=value` overrides it.
Packaged recipes are named without a path (`band`); anything with a `/` or ending in `.yaml` is a file.
"""

from tinymusician.recipe.components import CodecConfig, TextEncoderConfig
from tinymusician.recipe.compression import QualityThreshold, QuantizeConfig
from tinymusician.recipe.distillation import (
    ActorSignalsConfig,
    CachedSignalsConfig,
    FixedBiKLConfig,
    LayerPrunedStudent,
    LayerSubset,
    Objective,
    OnPolicyConfig,
    PlainObjectiveConfig,
    StageMixedConfig,
    SwitchedBiKLConfig,
    TeacherConfig,
    TrainingConfig,
    WidthPrunedStudent,
)
from tinymusician.recipe.evaluation import (
    EvaluateConfig,
    EvaluateStep,
    Grid,
    LaionClapEmbeddingConfig,
)
from tinymusician.recipe.load import apply_overrides, load_recipe, parse_recipe, recipe_names, recipe_yaml
from tinymusician.recipe.pretraining import PretrainConfig
from tinymusician.recipe.recipe import Recipe
from tinymusician.recipe.release import PublishConfig, Step
from tinymusician.recipe.understanding import LanguageModelConfig, UnderstandConfig

__all__ = [
    "ActorSignalsConfig",
    "CachedSignalsConfig",
    "CodecConfig",
    "EvaluateConfig",
    "EvaluateStep",
    "FixedBiKLConfig",
    "Grid",
    "LaionClapEmbeddingConfig",
    "LanguageModelConfig",
    "LayerPrunedStudent",
    "LayerSubset",
    "Objective",
    "OnPolicyConfig",
    "PlainObjectiveConfig",
    "PretrainConfig",
    "PublishConfig",
    "QualityThreshold",
    "QuantizeConfig",
    "Recipe",
    "StageMixedConfig",
    "Step",
    "SwitchedBiKLConfig",
    "TeacherConfig",
    "TextEncoderConfig",
    "TrainingConfig",
    "UnderstandConfig",
    "WidthPrunedStudent",
    "apply_overrides",
    "load_recipe",
    "parse_recipe",
    "recipe_names",
    "recipe_yaml",
]
