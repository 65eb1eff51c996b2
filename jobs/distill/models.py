"""Teacher and student of a recipe, loaded and checked against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from jobs.distill.components import StudentComponents, build_components
from jobs.worker.context import WorkerContext
from tinymusician.data.prompts import load_prompts
from tinymusician.data.shards import fingerprint
from tinymusician.errors import ClusterError, ModelError
from tinymusician.recipe import LayerPrunedStudent, LayerSubset, Recipe, WidthPrunedStudent

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from tinymusician.models.protocols import Musicgen, Tokenizer


class TensorParallelGroup(NamedTuple):
    """A worker's tensor-parallel group: its index, torch's process group, and whether the worker is its leader."""

    group_index: int
    num_groups: int
    is_leader: bool
    process_group: ProcessGroup


class TeacherStudent(NamedTuple):
    """Teacher and student with the tokenizer they share, and the digest of the teacher's weights.

    `tp_group` are the workers that share this teacher; None if every worker has the whole teacher.
    """

    teacher: Musicgen
    student: Musicgen
    tokenizer: Tokenizer
    teacher_digest: str
    tp_group: TensorParallelGroup | None = None


def load_models(recipe: Recipe) -> TeacherStudent:
    """Load the teacher, and load or prune the student.

    Raises:
        ModelError, RecipeError: weights are missing, or the two do not fit together.
    """
    from tinymusician.models.musicgen import load_musicgen, load_tokenizer
    from tinymusician.models.prune_layers import check_pair, weights_digest

    teacher = load_musicgen(recipe.teacher.model)
    student = new_student(recipe, teacher)
    check_pair(teacher, student)
    _check_length(recipe, teacher)
    return TeacherStudent(teacher, student, load_tokenizer(recipe.teacher.model), weights_digest(teacher))


def input_digests(recipe: Recipe, pair: TeacherStudent) -> dict[str, str]:
    """The digests of everything that a worker reads from its own disk before it samples."""
    from tinymusician.models.prune_layers import weights_digest

    prompts = [prompt.model_dump() for prompt in load_prompts(recipe.sequences.prompts)]
    return {
        f"teacher.model {recipe.teacher.model}": pair.teacher_digest,
        "the student's initial weights": weights_digest(pair.student),
        f"sequences.prompts {recipe.sequences.prompts}": fingerprint({"prompts": prompts}),
    }


def shard_teacher(context: WorkerContext, pair: TeacherStudent) -> TeacherStudent:
    """The pair with its teacher sharded over the workers of a tensor-parallel group; all workers must call this.

    Raises:
        ClusterError: the number of workers is not a multiple of the tensor-parallel size.
        ModelError: the teacher's heads or widths are not multiples of it.
    """
    size = context.recipe.teacher.tensor_parallel_size
    if size == 1:
        return pair
    if context.world % size:
        raise ClusterError(f"--workers {context.world}: teacher.tensor_parallel_size = {size} needs a multiple of it")
    from torch.distributed.device_mesh import init_device_mesh

    from tinymusician.models.tensor_parallel import shard_decoder

    count = context.world // size
    mesh = init_device_mesh(context.device, (count, size), mesh_dim_names=("dp", "tp"))["tp"]
    shard_decoder(pair.teacher, mesh)
    group = TensorParallelGroup(context.rank // size, count, context.rank % size == 0, mesh.get_group())
    return pair._replace(tp_group=group)


def new_student(recipe: Recipe, teacher: Musicgen, parts: StudentComponents | None = None) -> Musicgen:
    """The student before its language model is trained: pruned from the teacher by layers or width, or loaded.

    Its text encoder and codec are those of `parts`; by default they are pruned too, if the recipe makes them smaller.
    """
    from tinymusician.models.guidance import add_guidance_conditioning
    from tinymusician.models.musicgen import load_musicgen
    from tinymusician.models.prune_layers import prune_layers
    from tinymusician.models.prune_width import prune_width
    from tinymusician.models.prune_width_codec import with_reconstructions
    from tinymusician.models.prune_width_text import with_text

    chosen, ranged = recipe.student, recipe.teacher.guidance_range
    if isinstance(chosen, WidthPrunedStudent):
        student = prune_width(teacher, chosen.layers, chosen.width, chosen.heads, chosen.feed_forward)
    elif isinstance(chosen, LayerPrunedStudent):
        student = prune_layers(teacher, chosen.layers)
    else:
        student = load_musicgen(chosen.model)
    parts = parts or build_components(recipe, teacher)
    student = student if parts.text is None else with_text(student, parts.text)
    student = student if parts.codec is None else with_reconstructions(student, parts.codec.codec)
    student = add_guidance_conditioning(student, *ranged) if ranged else student
    if recipe.training.activation_checkpointing:
        student.decoder.gradient_checkpointing_enable({"use_reentrant": False})
    return student


def untrained_student(recipe: Recipe) -> tuple[Musicgen, Tokenizer]:
    """The student before any training, and its tokenizer; one with weights of its own is loaded without its teacher."""
    from tinymusician.models.musicgen import load_musicgen, load_tokenizer

    if isinstance(recipe.student, LayerSubset):
        return load_models(recipe)[1:3]
    return load_musicgen(recipe.student.model), load_tokenizer(recipe.teacher.model)


def _check_length(recipe: Recipe, teacher: Musicgen) -> None:
    """Check that the recipe's sequences fit into the decoder's positions.

    Raises:
        ModelError: they do not.
    """
    config = teacher.config.decoder
    longest = (config.max_position_embeddings - config.num_codebooks) / teacher.config.audio_encoder.frame_rate
    if recipe.sequences.seconds > longest:
        raise ModelError(
            f"sequences.seconds = {recipe.sequences.seconds:g}: the teacher's {config.max_position_embeddings} "
            f"positions hold at most {longest:.1f} s"
        )
