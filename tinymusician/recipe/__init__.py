"""The recipe: everything a job depends on, typed, closed and checked before anything starts.

A recipe is a YAML file that says what differs from the defaults of its parts; `--set part.key=value` overrides it.
Packaged recipes are named without a path (`band`); anything with a `/` or ending in `.yaml` is a file.
"""

from tinymusician.recipe.compression import Gate, Precision, Quantize
from tinymusician.recipe.distillation import (
    ActorSignals,
    CachedSignals,
    CutStudent,
    FixedBiKL,
    FromLayers,
    NarrowStudent,
    Objective,
    OnPolicy,
    PlainObjective,
    StageMixed,
    SteppedBiKL,
    Teacher,
    Training,
)
from tinymusician.recipe.evaluation import Degeneration, Evaluate, Grid, LaionClapEmbedding
from tinymusician.recipe.parts import Codec, TextEncoder
from tinymusician.recipe.pretraining import Pretraining
from tinymusician.recipe.release import Publish, ReleaseGates, Step
from tinymusician.recipe.whole import Recipe, load_recipe, overridden, parse_recipe, recipe_names

__all__ = [
    "ActorSignals",
    "CachedSignals",
    "Codec",
    "CutStudent",
    "Degeneration",
    "Evaluate",
    "FixedBiKL",
    "FromLayers",
    "Gate",
    "Grid",
    "LaionClapEmbedding",
    "NarrowStudent",
    "Objective",
    "OnPolicy",
    "PlainObjective",
    "Precision",
    "Pretraining",
    "Publish",
    "Quantize",
    "Recipe",
    "ReleaseGates",
    "StageMixed",
    "Step",
    "SteppedBiKL",
    "Teacher",
    "TextEncoder",
    "Training",
    "load_recipe",
    "overridden",
    "parse_recipe",
    "recipe_names",
]
