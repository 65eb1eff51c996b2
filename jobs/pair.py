"""Teacher and student of a recipe, loaded and checked against each other."""

from __future__ import annotations

from typing import Any, NamedTuple

from tinymusician.errors import ModelError
from tinymusician.recipe import CutStudent, Recipe


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


def untrained(recipe: Recipe) -> tuple[Any, Any]:
    """The student before any training, and its tokenizer; a ready one is loaded without its teacher."""
    from tinymusician.models.musicgen import load_musicgen, load_tokenizer

    if isinstance(recipe.student, CutStudent):
        return load_pair(recipe)[1:3]
    return load_musicgen(recipe.student.model), load_tokenizer(recipe.teacher.model)


def check_length(recipe: Recipe, teacher: Any) -> None:
    """The recipe's sequences must fit into the decoder's positions."""
    config = teacher.config.decoder
    longest = (config.max_position_embeddings - config.num_codebooks) / teacher.config.audio_encoder.frame_rate
    if recipe.sequences.seconds > longest:
        raise ModelError(
            f"sequences.seconds = {recipe.sequences.seconds:g}: the teacher's {config.max_position_embeddings} "
            f"positions hold at most {longest:.1f} s"
        )
