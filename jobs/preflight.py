"""What is checked on the submitting machine before a job is sent: all that can be known without loading weights."""

from __future__ import annotations

from pathlib import Path

from jobs.cost import student_shape
from jobs.submission import Kind
from tinymusician.data.prompts import load_prompts
from tinymusician.errors import DataError, ModelError, RecipeError
from tinymusician.models.shape import shape_of
from tinymusician.recipe import CutStudent, Recipe


def check(kind: Kind, recipe: Recipe) -> None:
    """Raise the first problem of a recipe with the files it names.

    Raises:
        RecipeError, ModelError, DataError: it could not run.
    """
    if kind == "pretrain":
        if recipe.pretrain is None:
            raise RecipeError(f"recipe {recipe.name}: has no `pretrain` part; only the house band is made from nothing")
        return
    load_prompts(recipe.sequences.prompts)
    if recipe.sequences.clips is not None and not Path(recipe.sequences.clips).is_dir():
        raise DataError(f"sequences.clips = {recipe.sequences.clips!r}: no such folder")
    check_models(recipe)


def check_models(recipe: Recipe) -> None:
    """Paths must exist; where both shapes are known, the student must fit its teacher."""
    for field, name in (
        ("teacher.model", recipe.teacher.model),
        ("student.model", getattr(recipe.student, "model", "")),
    ):
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise ModelError(f"{field} = {name!r}: no such folder")
    teacher = shape_of(recipe.teacher.model)
    if teacher is None:
        return
    if isinstance(recipe.student, CutStudent):
        layers = recipe.student.layers
        if len(layers) > teacher.layers:
            raise RecipeError(
                f"student.layers = {list(layers)}: deeper than the teacher, which has {teacher.layers} layers"
            )
        if max(layers) >= teacher.layers:
            raise RecipeError(f"student.layers = {list(layers)}: the teacher's layers are 0 to {teacher.layers - 1}")
    student = student_shape(recipe, teacher)
    if student and (student.codebooks, student.vocabulary) != (teacher.codebooks, teacher.vocabulary):
        raise ModelError(
            f"student: {student.codebooks} codebooks of {student.vocabulary}; "
            f"the teacher's {teacher.codebooks} of {teacher.vocabulary} are needed"
        )
