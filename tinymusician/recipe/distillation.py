"""The sections of a recipe for distillation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tinymusician.config_model import ConfigModel, Count, Positive, Share


class TeacherConfig(ConfigModel):
    """The teacher, and how it is sampled."""

    kind: Literal["transformers", "audiocraft"] = Field(
        "transformers", description="audiocraft: model is a release folder (state_dict.bin, compression_state_dict.bin)"
    )
    model: str = Field(description="hub id, local folder, or a packaged band model")
    target: Literal["conditional", "guided"] = Field(
        "conditional",
        description="conditional: match the passes with and without text, the student needs both; "
        "guided: imitate the guided distribution in one pass",
    )
    guidance_scale: Positive = Field(
        3.0,
        description="classifier-free guidance scale s of samples and of the guided target; by default the model's own",
    )
    guidance_range: tuple[Positive, Positive] | None = Field(
        None, description="guided: condition the student on its scale, which is sampled from this range"
    )
    top_k: Count = Field(250, description="top-k of the teacher's samples; by default the model's own")
    temperature: Positive = Field(
        1.0, description="sampling temperature of the teacher's samples; by default the model's own"
    )
    tensor_parallel_size: Count = Field(
        1, description="workers that share one teacher, if it is too large for one device"
    )

    @property
    def passes(self) -> Literal["conditional", "guided"]:
        """The teacher's passes: both, also for a student whose scales are sampled later."""
        return self.target if self.guidance_range is None else "conditional"

    @model_validator(mode="after")
    def _range_around_the_scale(self) -> Self:
        if self.guidance_range is None:
            return self
        low, high = self.guidance_range
        if self.target != "guided":
            raise ValueError(
                f"guidance_range {low:g} to {high:g}: needs target guided, which conditions the student on its scale"
            )
        if not (low < high and low <= self.guidance_scale <= high):
            raise ValueError(
                f"guidance_range {low:g} to {high:g}: must rise and contain the default, guidance_scale "
                f"{self.guidance_scale:g}"
            )
        return self


class LayerSubset(ConfigModel):
    """A student whose decoder layers come from chosen teacher layers."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="teacher layers, counted from 0, that the student keeps, in this order"
    )


class LayerPrunedStudent(LayerSubset):
    """A student of the teacher's width."""

    kind: Literal["prune_layers"] = "prune_layers"


class WidthPrunedStudent(LayerSubset):
    """A student of a smaller width, pruned from the teacher's matrices."""

    kind: Literal["prune_width"] = "prune_width"
    width: Count = Field(description="width of the residual stream: heads times the width of the teacher's heads")
    heads: Count = Field(description="number of attention heads; the teacher's largest are kept")
    feed_forward: Count = Field(description="width of the feed-forward blocks")


class PretrainedStudent(ConfigModel):
    """An existing model as the student, such as MusicGen-Small under MusicGen-Large."""

    kind: Literal["pretrained"] = "pretrained"
    model: str = Field(description="hub id or local folder")


class SequencesConfig(ConfigModel):
    """The code sequences of the distillation."""

    prompts: str = Field("general", description="packaged prompt file (general, band) or a path to a JSON-lines file")
    seconds: Positive = Field(
        10.0, le=30.0, description="length of every sequence, in seconds; MusicGen's positions end at 30 s"
    )
    samples_per_prompt: Count = Field(4, description="teacher samples per training prompt")
    clips: str | None = Field(
        None, description="a folder of WAV files, each with its caption in a .txt of the same name"
    )
    clip_share: Share = Field(0.0, description="share of clips among the sequences; the rest are teacher samples")
    sampling_batch_size: Count = Field(32, description="samples per batch; fewer need less memory")
    prompts_per_shard: Count = Field(
        16, description="prompts per shard: the maximum that is lost when sampling is interrupted"
    )

    @model_validator(mode="after")
    def _clips_present(self) -> Self:
        if self.clip_share > 0 and self.clips is None:
            raise ValueError(f"clip_share {self.clip_share}: needs `clips`, a folder of WAV files with captions")
        if self.clips is not None and self.clip_share == 0:
            raise ValueError("clips: given, but clip_share is 0; allowed are shares in (0, 1]")
        return self


class OnlineSignalsConfig(ConfigModel):
    """The teacher runs in each worker."""

    source: Literal["online"] = "online"


class ActorSignalsConfig(ConfigModel):
    """The teacher runs on Ray actors of its own, ahead of the workers that train."""

    source: Literal["actors"] = "actors"
    actors: Count = Field(1, description="number of actors, each with a teacher, beside the workers")
    prefetch: Count = Field(2, description="batches that are prepared ahead for each worker")


class CachedSignalsConfig(ConfigModel):
    """The teacher's logits are read from shards of `submit precompute` with the same recipe."""

    source: Literal["cached"] = "cached"
    top_k: Count | None = Field(
        None, description="store this many most likely codes and the mass of the rest; if not given, all codes"
    )


Signals = Annotated[OnlineSignalsConfig | ActorSignalsConfig | CachedSignalsConfig, Field(discriminator="source")]


class HiddenConfig(ConfigModel):
    """A loss on hidden states: each student layer follows a teacher layer, through a learned projection."""

    weight: Annotated[float, Field(ge=0)] = Field(0.0, description="weight beside the objective; 0 is none")
    kind: Literal["mse", "cosine"] = Field("cosine", description="mse: TinyBERT's; cosine: DistilBERT's and PKD's")


class OnPolicyConfig(ConfigModel):
    """The student's own samples, scored by the teacher, among a step's sequences (GKD, arXiv 2306.13649)."""

    share: Share = Field(0.0, description="share of a step's sequences that the student samples")
    begin: Share = Field(0.0, description="share of the training before the first of them")
    ramp: Share = Field(0.0, description="share of the training over which the share rises")
    refresh: Count = Field(10, description="steps for which the student samples at once; no sample is older")


class TemperatureConfig(ConfigModel):
    """The temperature of both distributions, τ(t) from `initial` to `final` (eq. 5)."""

    initial: Positive = 1.0
    final: Positive = 1.0
    axis: Literal["sequence", "training"] = Field(
        "sequence", description="sequence: along the generated steps (the paper's); training: along training steps"
    )


Transition = Annotated[
    float, Field(ge=0, le=1, description="share of the training over which the stage changes; 0 is a hard step")
]
Switch = Annotated[float, Field(ge=0, le=1, description="share of the training after which reverse replaces forward")]


class HardLabels(ConfigModel):
    """What all objectives have: a share of cross-entropy (Hinton et al., arXiv 1503.02531; TinyTTM, 2406.17159)."""

    hard: Share = Field(
        0.0,
        description="share of the cross-entropy with the sequences' own codes in the loss: real ones with "
        "sequences.clips, else the teacher's samples; 1 is fine-tuning",
    )


class PlainObjectiveConfig(HardLabels):
    """KL(p ‖ q), KL(q ‖ p), or their sum."""

    name: Literal["forward", "reverse", "bikl"]


class FixedBiKLConfig(HardLabels):
    """w·KL(p ‖ q) + (1-w)·KL(q ‖ p)."""

    name: Literal["fixed_bikl"]
    weight: Share = 0.5


class SwitchedBiKLConfig(HardLabels):
    """Forward KL first, reverse KL after the switch."""

    name: Literal["switched_bikl"]
    switch: Switch = 0.5
    transition: Transition = 0.0


class StageMixedConfig(HardLabels):
    """TinyMusician's stage-mixed bidirectional skewed KL (eq. 4)."""

    name: Literal["stage_mixed"] = "stage_mixed"
    switch: Switch = 0.5
    transition: Transition = 0.0
    beta: Share = Field(0.5, description="share of the plain term before the switch")
    gamma: Share = Field(0.5, description="share of the plain term after the switch")
    skew: float = Field(0.1, ge=0, lt=1, description="λ: the share of the other distribution in the mixture")


Objective = Annotated[
    PlainObjectiveConfig | FixedBiKLConfig | SwitchedBiKLConfig | StageMixedConfig, Field(discriminator="name")
]


class TrainingConfig(ConfigModel):
    """Steps, sizes and rates. The learning rate warms up, then follows half a cosine.

    A step takes `global_batch` sequences, in microbatches of `batch_size`, which the workers share. The number of
    workers never changes what is learned.
    """

    steps: Count = 1000
    epochs: Positive | None = Field(
        None, description="passes over the training sequences; if given, it sets steps at submission"
    )
    global_batch: Count | None = Field(None, description="sequences per step; if not given, batch_size")
    batch_size: Count = Field(8, description="sequences per microbatch: what a worker computes at once")
    device: Literal["auto", "gpu", "cpu"] = Field(
        "auto",
        description="auto: a GPU per worker if the cluster has any; refused where an autoscaler may add some",
    )
    cpus_per_worker: Count | None = Field(
        None, description="CPUs of each worker; if not given, its share of its node, less one for others"
    )
    min_workers: Count | None = Field(
        None, description="continue with this many workers while machines are lost; if not given, wait for all"
    )
    learning_rate: Positive = 3e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: Positive = Field(1.0, description="maximum gradient norm")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on a GPU that has it, float32 otherwise"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage")
    activation_checkpointing: bool = Field(
        False, description="recompute the activations of the student's layers: less memory, slower"
    )
    seed: Annotated[int, Field(ge=0)] = 0
    log_every: Count = 10
    validate_every: Count = 100
    checkpoint_every: Count = Field(100, description="steps between checkpoints")
    checkpoint_minutes: Positive = Field(10, description="a checkpoint is begun after so many minutes without one")
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        2, description="how often workers that died are restarted without a new checkpoint in between"
    )
    hang_seconds: Annotated[float, Field(ge=5)] = Field(
        240, description="a step or validation that takes longer than this, and ten times its usual time, hangs"
    )
    max_skipped_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="maximum number of skipped steps, whose loss or gradient is not finite; 0 stops at the first"
    )

    @property
    def microbatches(self) -> int:
        """The number of microbatches of a step, which is also the most workers that have something to do."""
        return (self.global_batch or self.batch_size) // self.batch_size

    @model_validator(mode="after")
    def _has_whole_microbatches(self) -> Self:
        if self.global_batch is not None and self.global_batch % self.batch_size:
            raise ValueError(
                f"global_batch {self.global_batch}: a multiple of batch_size ({self.batch_size}) is needed"
            )
        return self

    @model_validator(mode="after")
    def _warm_before_the_end(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup {self.warmup_steps}: fewer than steps ({self.steps}) are allowed")
        return self
