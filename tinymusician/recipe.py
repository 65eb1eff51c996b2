"""The recipe: everything a job depends on, typed, closed and checked before anything starts.

A recipe is a YAML file that says what differs from the defaults below; `--set part.key=value` overrides it. Packaged
recipes are named without a path (`band`); anything with a `/` or ending in `.yaml` is a file.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tinymusician.errors import RecipeError

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    """A frozen, closed piece of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Teacher(Part):
    """The model that is imitated, and what it is asked."""

    kind: Literal["transformers", "audiocraft"] = Field(
        "transformers", description="audiocraft: model is a release folder (state_dict.bin, compression_state_dict.bin)"
    )
    model: str = Field(description="hub id, local folder, or a packaged band model")
    target: Literal["conditional", "guided"] = Field(
        "conditional",
        description="conditional: imitate the passes with and without text, the student needs both; "
        "guided: imitate the guided distribution in one pass",
    )
    guidance: Positive = Field(3.0, description="classifier-free guidance scale s of samples and of the guided target")
    top_k: Count = Field(250, description="the teacher's samples draw among this many likeliest codes")
    temperature: Positive = Field(1.0, description="sampling temperature of the teacher's samples")


class CutStudent(Part):
    """A student of the teacher's width whose decoder layers are copied from chosen teacher layers."""

    kind: Literal["cut"] = "cut"
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="teacher layers, counted from 0, that become the student's, in this order"
    )


class ReadyStudent(Part):
    """A student that already exists, such as MusicGen-Small under MusicGen-Large."""

    kind: Literal["model"] = "model"
    model: str = Field(description="hub id or local folder")


class Sequences(Part):
    """The code sequences on which teacher and student are compared."""

    prompts: str = Field("general", description="packaged prompt file (general, band) or a path to a JSON-lines file")
    seconds: Positive = Field(10.0, le=30.0, description="length of every sequence; MusicGen's positions end at 30 s")
    samples: Count = Field(4, description="teacher samples a training prompt")
    clips: str | None = Field(
        None, description="a folder of WAV files, each with its caption in a .txt of the same name"
    )
    clip_share: Share = Field(0.0, description="share of sequences taken from the clips; the rest are teacher samples")
    samples_at_once: Count = Field(32, description="samples played side by side; fewer need less memory")
    shard_prompts: Count = Field(16, description="prompts a shard: what is lost at most when sampling is interrupted")

    @model_validator(mode="after")
    def _clips_present(self) -> Self:
        if self.clip_share > 0 and self.clips is None:
            raise ValueError(f"clip_share {self.clip_share}: needs `clips`, a folder of WAV files with captions")
        if self.clips is not None and self.clip_share == 0:
            raise ValueError("clips: given, but clip_share is 0; allowed are shares in (0, 1]")
        return self


class Signals(Part):
    """Where the teacher's logits come from during training."""

    source: Literal["online", "cached"] = Field(
        "online", description="online: the teacher runs in each worker; cached: shards that `submit precompute` made"
    )


class Temperature(Part):
    """Softening of both distributions, τ(t) from `initial` to `final` (eq. 5)."""

    initial: Positive = 1.0
    final: Positive = 1.0
    axis: Literal["sequence", "training"] = Field(
        "sequence", description="sequence: along the generated steps (the paper's); training: along training steps"
    )


Transition = Annotated[
    float, Field(ge=0, le=1, description="share of the run over which the stage changes; 0 is a step")
]
Switch = Annotated[float, Field(ge=0, le=1, description="share of the run after which reverse replaces forward")]


class PlainObjective(Part):
    """KL(p ‖ q), KL(q ‖ p), or their sum."""

    name: Literal["forward", "reverse", "bikl"]


class FixedBiKL(Part):
    """w·KL(p ‖ q) + (1-w)·KL(q ‖ p)."""

    name: Literal["fixed_bikl"]
    weight: Share = 0.5


class SteppedBiKL(Part):
    """Forward KL first, reverse KL after the switch."""

    name: Literal["stepped_bikl"]
    switch: Switch = 0.5
    transition: Transition = 0.0


class StageMixed(Part):
    """TinyMusician's stage-mixed bidirectional skewed KL (eq. 4)."""

    name: Literal["stage_mixed"] = "stage_mixed"
    switch: Switch = 0.5
    transition: Transition = 0.0
    beta: Share = Field(0.5, description="share of the plain term before the switch")
    gamma: Share = Field(0.5, description="share of the plain term after the switch")
    skew: float = Field(0.1, ge=0, lt=1, description="λ: how much of the other distribution is mixed in")


Objective = Annotated[PlainObjective | FixedBiKL | SteppedBiKL | StageMixed, Field(discriminator="name")]


class Training(Part):
    """Steps, sizes and rates. The batch is per worker; the learning rate warms up, then follows half a cosine."""

    steps: Count = 1000
    batch_size: Count = 8
    learning_rate: Positive = 3e-4
    warmup: Annotated[int, Field(ge=0)] = 20
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Positive = Field(1.0, description="largest gradient norm")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on a GPU that has it, float32 otherwise"
    )
    zero: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage")
    seed: Annotated[int, Field(ge=0)] = 0
    log_every: Count = 10
    validate_every: Count = 100
    checkpoint_every: Count = 100
    restarts: Annotated[int, Field(ge=0)] = Field(2, description="how often Ray Train restarts workers that died")

    @model_validator(mode="after")
    def _warm_before_the_end(self) -> Self:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup}: fewer than steps ({self.steps}) are allowed")
        return self


BandPart = Literal["codec", "band-large", "band-small", "band-clap", "band-tagger"]


class Pretraining(Part):
    """How the house band is made: corpus, codec and language model. Only the band's recipe has this part."""

    parts: tuple[BandPart, ...] = Field(
        ("codec", "band-large", "band-small", "band-clap", "band-tagger"), min_length=1, description="what is made"
    )
    train_clips: Count = Field(9000, description="clips of five seconds rendered from the training tunes")
    held_out_clips: int = Field(400, ge=10, description="clips each of validation and test tunes")
    codec_steps: Count = Field(6000, description="training steps of the codec")
    codec_batch: Count = Field(12, description="clips a step of the codec")
    codec_rate: Positive = Field(6e-4, description="the codec's peak learning rate")
    teacher_steps: Count = Field(1300, description="training steps of band-large")
    student_steps: Count = Field(700, description="training steps of band-small")
    language_model_batch: Count = Field(24, description="clips a step of both language models")
    language_model_rate: Positive = Field(1e-3, description="their peak learning rate")
    clap_steps: Count = Field(500, description="training steps of band-clap")
    clap_batch: Count = Field(48, description="pairs of clip and caption a step of band-clap")
    tagger_steps: Count = Field(400, description="training steps of band-tagger")
    tagger_batch: Count = Field(32, description="clips a step of band-tagger")

    @model_validator(mode="after")
    def _codec_first(self) -> Self:
        if "codec" not in self.parts and {"band-large", "band-small"} & set(self.parts):
            raise ValueError(
                f"parts {list(self.parts)}: band-large and band-small speak the codec's codes, so add codec"
            )
        return self


Precision = Literal["float32", "float16", "int8", "int4"]


class Gate(Part):
    """What a bundle must keep against PyTorch in float32; one that does not is not stored."""

    kl: Positive = Field(description="largest KL in nats a code, of the worst codebook")
    agreement: Share = Field(description="smallest share of steps with the same likeliest code")
    codec_snr: float = Field(description="smallest signal-to-noise ratio of the codec's wave, in dB")


class Gates(Part):
    """A gate for every precision; a plan must pass that of its coarsest one."""

    float32: Gate = Gate(kl=1e-6, agreement=0.999, codec_snr=60)
    float16: Gate = Gate(kl=1e-3, agreement=0.98, codec_snr=40)
    int8: Gate = Gate(kl=0.02, agreement=0.9, codec_snr=20)
    int4: Gate = Gate(kl=0.2, agreement=0.75, codec_snr=20)

    @model_validator(mode="before")
    @classmethod
    def _partly(cls, content: Any) -> Any:
        """A gate that says only some of its values keeps the defaults of the others."""
        if not isinstance(content, dict):
            return content
        own = {name: field.default.model_dump() for name, field in cls.model_fields.items()}
        return {
            name: {**own[name], **gate} if name in own and isinstance(gate, dict) else gate
            for name, gate in content.items()
        }


class Quantize(Part):
    """How a model becomes a bundle."""

    model: str | None = Field(
        None, description="what to compress: an artifact, a folder or a hub id; none: the newest student of this recipe"
    )
    flavour: Literal["fused", "optimum"] = Field(
        "fused", description="fused: graphs for this package's engine; optimum: Optimum's files, for transformers.js"
    )
    plan: str | dict[str, Any] = Field(
        "adaptive", description="float32, paper, int8, server, adaptive, a plan's YAML file, or its content"
    )
    kl_budget: Positive = Field(0.02, description="adaptive: largest KL of any codebook, in nats a code")
    precisions: tuple[Precision, ...] = Field(
        ("float16", "int8", "int4"), min_length=1, description="adaptive: what each group may become besides float32"
    )
    block_size: Literal[16, 32, 64, 128, 256] = Field(64, description="adaptive: weights that share a scale")
    symmetric: bool = Field(True, description="adaptive: false gives every block a zero point")
    method: Literal["rtn", "hqq"] = Field(
        "rtn", description="adaptive: round to nearest, or fit scale and zero point of 4-bit weights (hqq)"
    )
    cache: Literal["float32", "int8"] = Field("float32", description="adaptive: how keys and values are kept")
    sequences: Count = Field(4, description="sequences on which groups are measured, of the validation prompts")
    seconds: Positive = Field(3.0, description="length of each of them")
    parity_sequences: Count = Field(2, description="sequences of the parity gate, of the test prompts, longest length")
    continuation: bool = Field(False, description="include the codec's encoder, so that clips can be continued")
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.method == "hqq" and self.symmetric:
            raise ValueError("method hqq: fits zero points, so symmetric must be false")
        if self.flavour == "optimum" and (self.cache != "float32" or self.continuation):
            raise ValueError("flavour optimum: knows neither cache int8 nor continuation; take flavour fused")
        return self


class BandReference(Part):
    """The rendered test tunes of the house band, with their captions."""

    kind: Literal["band"] = "band"


class FolderReference(Part):
    """Clips of one's own, each with its caption in a .txt of the same name."""

    kind: Literal["folder"] = "folder"
    audio: str = Field(description="the folder")


class MusicCapsReference(Part):
    """MusicCaps: its published table, and the audio that was gathered for it."""

    kind: Literal["musiccaps"] = "musiccaps"
    table: str = Field(description="musiccaps-public.csv")
    audio: str = Field(description="the folder of YTID.wav")
    subset: Literal["all", "balanced", "eval"] = "all"


class MusicBenchReference(Part):
    """MusicBench: one of its published tables, and its unpacked audio."""

    kind: Literal["musicbench"] = "musicbench"
    table: str = Field(description="such as MusicBench_test_A.json")
    audio: str = Field(description="the folder that the table's locations lie below")


Reference = Annotated[
    BandReference | FolderReference | MusicCapsReference | MusicBenchReference, Field(discriminator="kind")
]


class ClapEmbedding(Part):
    """A CLAP of transformers' layout: windows of its own length, in a space that holds prompts too."""

    kind: Literal["clap"] = "clap"
    model: str = Field("laion/larger_clap_music", description="hub id, local folder, or band-clap")


class EncodecEmbedding(Part):
    """The states of an EnCodec's encoder, a vector a frame."""

    kind: Literal["encodec"] = "encodec"
    model: str = Field("facebook/encodec_32khz", description="hub id or folder of an EnCodec or a MusicGen")


class VggishEmbedding(Part):
    """VGGish, the embedding of the first FAD."""

    kind: Literal["vggish"] = "vggish"
    checkpoint: str = Field(description="vggish-10086976.pth of harritaylor/torchvggish")


class LaionClapEmbedding(Part):
    """laion-clap itself, in an environment of its own."""

    kind: Literal["laion-clap"] = "laion-clap"
    checkpoint: str = Field(description="such as music_audioset_epoch_15_esc_90.14.pt")
    tokenizer: str = Field(description="a folder with RoBERTa's vocab.json and merges.txt")
    environment: str = Field(description="the folder that `infra/environments/install laion-clap FOLDER` made")
    audio_model: Literal["HTSAT-tiny", "HTSAT-base"] = Field("HTSAT-base", description="what the checkpoint holds")


Embedding = Annotated[
    ClapEmbedding | EncodecEmbedding | VggishEmbedding | LaionClapEmbedding, Field(discriminator="kind")
]


class Degeneration(Part):
    """Beyond what a clip counts as degenerate."""

    silent: Share = Field(0.9, description="share of its 20 ms frames below -60 dB of full scale")
    clipped: Share = Field(0.01, description="share of its samples at full scale")
    offset: Share = Field(0.05, description="its mean, as a share of full scale")
    looped: Share = Field(0.9, description="share of its frames whose codes repeat those of one fixed lag before")


class Evaluate(Part):
    """How models are judged: against which clips, in which embedding, with how many clips."""

    models: tuple[str, ...] = Field((), description="what is judged; none: the newest student of this recipe")
    reference: Reference | None = Field(None, description="the real clips; their captions are the prompts")
    clips: Annotated[int, Field(ge=2)] = Field(200, description="prompts of the reference that every model plays")
    seconds: Positive = Field(10.0, le=30.0, description="length of every clip, played or real")
    embedding: Embedding = Field(ClapEmbedding(), description="the space of FAD and KAD")
    clap: str = Field(
        "laion/larger_clap_music",
        description="the ClapModel of the CLAP score; `embedding` takes the one of FAD, if it knows texts",
    )
    tagger: str | None = Field(
        None,
        description="the classifier of the label divergence: band-tagger, or one for audio of transformers' layout",
    )
    agreement_clips: Annotated[int, Field(ge=0)] = Field(
        32, description="teacher's samples on which models are held against the teacher, code by code"
    )
    cost_runs: Annotated[int, Field(ge=0)] = Field(3, description="clips that each model plays alone, to be timed")
    listen: Count = Field(4, description="prompts that can be listened to in the report")
    resamples: Annotated[int, Field(ge=20)] = Field(200, description="resamples behind every interval of a distance")
    batch: Count = Field(16, description="clips played side by side")
    seed: Annotated[int, Field(ge=0)] = 0
    damaged: Literal["skip", "refuse"] = Field("skip", description="what to do with real clips that cannot be read")
    degeneration: Degeneration = Degeneration()

    @model_validator(mode="after")
    def _knows_texts(self) -> Self:
        if self.clap == "embedding" and self.embedding.kind not in ("clap", "laion-clap"):
            raise ValueError(f"clap embedding: embedding {self.embedding.kind} knows no texts; clap and laion-clap do")
        return self


Grid = Literal["objectives", "temperature", "skew", "switch"]


class Sweep(Part):
    """Trainings that differ in one thing each, by one yardstick; steps and sizes are those of `training`."""

    over: tuple[Grid, ...] = Field(
        ("objectives", "temperature", "skew", "switch"),
        min_length=1,
        description="objectives: the six of the paper; temperature: τ and what it falls along; skew: λ of stage_mixed; "
        "switch: when stage_mixed turns from forward to reverse",
    )
    seeds: Count = Field(3, description="trainings of each, which differ in the order of sequences")
    clips: Annotated[int, Field(ge=2)] = Field(64, description="captions of the reference that every student plays")


class Recipe(Part):
    """One model's recipe; jobs read the parts they need."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="also the name of the artifact")
    description: str
    teacher: Teacher
    student: Annotated[CutStudent | ReadyStudent, Field(discriminator="kind")]
    sequences: Sequences = Sequences()
    signals: Signals = Signals()
    temperature: Temperature = Temperature()
    objective: Objective = StageMixed()
    training: Training = Training()
    quantize: Quantize = Quantize()
    evaluate: Evaluate = Evaluate()
    sweep: Sweep = Sweep()
    pretrain: Pretraining | None = None


_KIND_KEYS = {
    "objective": "name",
    "student": "kind",
    "evaluate.reference": "kind",
    "evaluate.embedding": "kind",
}
"""The parts that come in several kinds, and the key that tells which."""


def recipe_names() -> list[str]:
    """The packaged recipes."""
    return sorted(p.name.removesuffix(".yaml") for p in _packaged().iterdir() if p.name.endswith(".yaml"))


def load_recipe(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Load a packaged recipe by name or a YAML file by path, and apply `part.key=value` overrides.

    Raises:
        RecipeError: no such recipe, not YAML, or a key or value that is not allowed.
    """
    content = _read(name)
    for override in overrides:
        _override(content, override)
    return parse_recipe(content, name)


def parse_recipe(content: Any, name: str) -> Recipe:
    """Check the content of a recipe file; `name` is for messages."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"recipe {name}: {_explain(error)}") from None


def _packaged() -> Any:
    return resources.files("tinymusician") / "recipes"


def _read(name: str) -> dict[str, Any]:
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    if not is_path and name not in recipe_names():
        raise RecipeError(
            f"recipe {name!r}: not packaged; allowed are {', '.join(recipe_names())}, or a YAML file's path"
        )
    try:
        text = Path(name).read_text() if is_path else (_packaged() / f"{name}.yaml").read_text()
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {name}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {name}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise RecipeError(f"recipe {name}: holds {type(content).__name__}, a mapping of keys is needed")
    return cast(dict[str, Any], content)


def _override(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {override!r}: the form is part.key=value, such as training.steps=200")
    place = content
    for key in keys[:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise RecipeError(f"--set {override!r}: {key!r} is a value, not a part")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not YAML") from error
    if keys[-1] == _KIND_KEYS.get(".".join(keys[:-1])) and place.get(keys[-1]) != value:
        place.clear()  # another kind has other keys: what the old one said does not apply
    place[keys[-1]] = value


def _without_kinds(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A field's place as a recipe writes it: pydantic adds the kind after a part that has several."""
    for depth in (1, 2):
        if ".".join(str(key) for key in location[:depth]) in _KIND_KEYS:
            return location[:depth] + location[depth + 1 :]
    return location


def _explain(error: ValidationError) -> str:
    """Each problem as `field (value): what is allowed`, on one line."""
    lines = []
    for problem in error.errors():
        field = ".".join(str(key) for key in _without_kinds(problem["loc"])) or "recipe"
        given = problem["input"]
        shown = f" = {given!r}" if isinstance(given, str | int | float | bool | None) else ""
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "no such key"
        lines.append(f"{field}{shown}: {message[0].lower()}{message[1:]}")
    return "; ".join(lines)
