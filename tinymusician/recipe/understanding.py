"""The `understand` section of a recipe: a model that answers questions about music."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tinymusician.config_model import ConfigModel, Count, Positive, Share
from tinymusician.settings import Precision


class AudioEncoderConfig(ConfigModel):
    """The audio encoder: MATPAC++'s vision transformer over log-mel patches. The defaults are TinyMU's, 85 M."""

    model: str | None = Field(
        None, description="a trained encoder: a packaged model, a folder or a MATPAC checkpoint; else it is trained"
    )
    width: Count = Field(768, description="width of a patch's vector")
    layers: Count = Field(12, description="transformer layers")
    heads: Count = Field(12, description="attention heads; they divide the width")
    feed_forward: Count = Field(3072, description="width of the feed-forward layers")
    pitch_channel: bool = Field(False, description="a second input channel with one band per semitone, for keys")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width}: must be a multiple of heads = {self.heads} and of 4")
        return self


class LanguageModelConfig(ConfigModel):
    """The language model, a Llama. The defaults are SmolLM2-135M's, which TinyMU uses, with random weights."""

    model: str | None = Field(
        None, description="a trained Llama, which brings shape and tokenizer: a folder, artifact or hub id"
    )
    width: Count = Field(576, description="width of a token's vector")
    layers: Count = Field(30, description="transformer layers")
    heads: Count = Field(9, description="attention heads; they divide the width")
    key_value_heads: Count = Field(3, description="heads of keys and values; they divide the heads")
    feed_forward: Count = Field(1536, description="width of the feed-forward layers")
    vocabulary: int = Field(49_152, ge=300, description="tokens; those of a model from scratch are learnt")
    lora_rank: int = Field(
        0, ge=0, description="train low-rank products beside a trained model's queries and values alone; 0: all weights"
    )
    lora_alpha: Positive = Field(128, description="the products' factor, times lora_rank")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads or self.heads % self.key_value_heads:
            raise ValueError(
                f"heads {self.heads}: must divide width = {self.width}, and be a multiple of key_value_heads = "
                f"{self.key_value_heads}"
            )
        return self


class EncoderTrainingConfig(ConfigModel):
    """Masked prediction (MATPAC++), then fine-tuning on the corpus' attributes.

    The defaults are those of MATPAC++ (aurianworld/matpac, training_matpac/config/matpac_plusplus.yaml).
    """

    steps: Count = Field(294_816, description="steps of masked prediction")
    batch_size: Count = Field(256, description="clips per step")
    learning_rate: Positive = Field(3e-4, description="peak learning rate")
    warmup_steps: int = Field(
        19_654,
        ge=0,
        description="steps until the peak, at most a tenth of all; those of the fine-tuning are at most a tenth",
    )
    mask_share: float = Field(0.7, gt=0, lt=1, description="share of the patches that are masked")
    predictor_width: Count = Field(512, description="width of the predictor")
    predictor_layers: Count = Field(8, description="layers of the predictor")
    predictor_heads: Count = Field(16, description="attention heads of the predictor")
    classes: Count = Field(2048, description="classes of the classification loss; its hidden layers are as wide")
    encoder_decay: tuple[Share, Share] = Field(
        (0.99995, 0.99999), description="decay of the teacher's average, first and last"
    )
    teacher_warmup_steps: Count = Field(9827, description="steps until the teacher's temperature has risen")
    finetune_steps: int = Field(0, ge=0, description="steps of fine-tuning on attributes, pitches and onsets")
    finetune_learning_rate: Positive = Field(1e-3, description="peak learning rate of the fine-tuning")
    finetune_pretrained: bool = Field(
        False, description="fine-tune a trained encoder (encoder.model) too; else it stays as it is"
    )


class QuestionsConfig(ConfigModel):
    """How many clips are rendered, and how many questions are written about them, per attribute."""

    train_clips: Count = Field(12_000, description="clips of training tunes")
    validation_clips: int = Field(400, ge=50, description="clips of validation tunes")
    test_clips: int = Field(800, ge=50, description="clips of test tunes")
    choice_groups: Count = Field(1000, description="groups of multiple choice: one list of options, a clip for each")
    yes_no_pairs: Count = Field(800, description="pairs of one question, of which one answer is yes and one is no")
    open_questions: Count = Field(1200, description="questions without options")
    captions: Count = Field(3000, description="descriptions, in all")
    unanswerable: int = Field(3000, ge=0, description="questions that no clip answers, in all")
    codec: str | None = Field(
        None, description="a MusicGen whose codec some clips pass through, so that generated music is understood"
    )
    reconstructed_share: Share = Field(
        0.2, description="share of the training clips that pass through the codec, if one is named"
    )
    band_limited_share: Share = Field(
        0.2, description="share of the training clips without the highest frequencies, as compressed files have none"
    )
    benchmark_groups: Count = Field(30, description="groups of four of the benchmark")


class AnswerTrainingConfig(ConfigModel):
    """Training of projector and language model on the questions. The defaults are TinyMU's."""

    steps: Count = Field(164_000, description="training steps")
    batch_size: Count = Field(64, description="questions per step")
    learning_rate: Positive = Field(1e-4, description="peak learning rate")
    warmup_steps: int = Field(8200, ge=0, description="steps until the peak, at most a tenth of all")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    projector_width: Count = Field(2048, description="hidden width of the projector")
    language_steps: int = Field(
        0, ge=0, description="steps of the language model alone before, with what is asked for in words; 0: none"
    )
    no_music_share: Share = Field(0.03, description="share of clips that are replaced by silence or noise")
    text_only_steps: int = Field(0, ge=0, description="steps of a model of the same size without audio, as a control")


class AnswerTeacherConfig(ConfigModel):
    """A trained model whose answers a smaller one learns; its tokenizer is the teacher's, and so is its encoder."""

    model: str = Field(description="the teacher: a packaged model, folder or artifact")
    hard: float = Field(0.5, ge=0, description="weight of the cross-entropy of true answers beside the KL")
    layers: tuple[int, ...] = Field((), description="the teacher's layers that the student begins with; () is random")


class CompressConfig(ConfigModel):
    """The bundle: the smallest plan whose accuracy on validation questions is within the budget of float32's."""

    precision: Precision | None = Field(
        None, description="one precision for all weights, whatever it costs; null: each group's is searched for"
    )
    accuracy_budget: Positive = Field(
        0.01, description="largest loss of accuracy by a search, as a share of the questions"
    )
    questions: Count = Field(400, description="validation questions on which plans are compared")
    block_size: Literal[16, 32, 64, 128, 256] = Field(64, description="weights per scale of int8 and int4")


class UnderstandConfig(ConfigModel):
    """A model that answers questions about music: encoder, projector, language model, and how they are trained."""

    encoder: AudioEncoderConfig = AudioEncoderConfig()
    language_model: LanguageModelConfig = LanguageModelConfig()
    pretrain: EncoderTrainingConfig = EncoderTrainingConfig()
    questions: QuestionsConfig = QuestionsConfig()
    train: AnswerTrainingConfig = AnswerTrainingConfig()
    teacher: AnswerTeacherConfig | None = None
    compress: CompressConfig = CompressConfig()

    @model_validator(mode="after")
    def _trained_language_model_is_used(self) -> Self:
        lm = self.language_model
        if lm.model is None and lm.lora_rank:
            raise ValueError(f"language_model.lora_rank = {lm.lora_rank}: needs language_model.model")
        if lm.model is not None and self.teacher is not None:
            raise ValueError(f"language_model.model {lm.model!r}: teacher.model brings a tokenizer; leave it out")
        if lm.model is not None and self.train.language_steps:
            raise ValueError(f"train.language_steps = {self.train.language_steps}: {lm.model!r} can read; 0 is needed")
        return self

    @model_validator(mode="after")
    def _teacher_brings_the_encoder(self) -> Self:
        if self.teacher is not None and self.encoder.model is not None:
            raise ValueError(
                f"encoder.model {self.encoder.model!r}: teacher.model brings its own encoder; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _pretrained_encoder_is_finetuned(self) -> Self:
        if self.pretrain.finetune_pretrained and self.encoder.model is None:
            raise ValueError("pretrain.finetune_pretrained: needs encoder.model, a trained encoder")
        if self.pretrain.finetune_pretrained and not self.pretrain.finetune_steps:
            raise ValueError("pretrain.finetune_pretrained: pretrain.finetune_steps is 0; 1 or more are needed")
        return self

    @model_validator(mode="after")
    def _student_has_the_layers(self) -> Self:
        if self.teacher is not None and len(self.teacher.layers) not in (0, self.language_model.layers):
            raise ValueError(
                f"teacher.layers {list(self.teacher.layers)}: language_model.layers = {self.language_model.layers} of "
                "them are needed, or none"
            )
        return self
