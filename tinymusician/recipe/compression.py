"""The `quantize` section of a recipe."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tinymusician.config_model import ConfigModel, Count, Positive, Share
from tinymusician.json_types import JsonObject
from tinymusician.settings import Precision


class QualityThreshold(ConfigModel):
    """The parity that a bundle must have with PyTorch in float32; one that has less is not stored."""

    kl: Positive = Field(description="maximum KL of the worst codebook, in nats per code")
    agreement: Share = Field(description="minimum share of steps with the same most likely code")
    codec_snr: float = Field(description="minimum signal-to-noise ratio of the codec's wave, in dB")


class QualityThresholds(ConfigModel):
    """A threshold for every precision; that of a plan's coarsest precision applies."""

    float32: QualityThreshold = QualityThreshold(kl=1e-6, agreement=0.999, codec_snr=60)
    float16: QualityThreshold = QualityThreshold(kl=1e-3, agreement=0.98, codec_snr=40)
    int8: QualityThreshold = QualityThreshold(kl=0.02, agreement=0.9, codec_snr=20)
    int4: QualityThreshold = QualityThreshold(kl=0.2, agreement=0.75, codec_snr=20)

    @model_validator(mode="before")
    @classmethod
    def _partly(cls, content: object) -> object:
        """A threshold with some values only keeps the defaults of the others."""
        if not isinstance(content, dict):
            return content
        defaults = {name: field.default.model_dump() for name, field in cls.model_fields.items()}
        return {
            name: {**defaults[name], **gate} if name in defaults and isinstance(gate, dict) else gate
            for name, gate in content.items()
        }


class QuantizeConfig(ConfigModel):
    """How a model becomes a bundle."""

    model: str | None = Field(
        None,
        description="the model: an artifact, a folder or a hub id; if not given, the newest student of this recipe",
    )
    format: Literal["fused", "optimum"] = Field(
        "fused", description="fused: graphs for this package's engine; optimum: Optimum's files, for transformers.js"
    )
    plan: str | JsonObject = Field(
        "adaptive", description="float32, paper, int8, server, adaptive, a plan's YAML file, or its content"
    )
    kl_budget: Positive = Field(0.02, description="adaptive: maximum KL of any codebook, in nats per code")
    precisions: tuple[Precision, ...] = Field(
        ("float16", "int8", "int4"),
        min_length=1,
        description="adaptive: the precisions to choose from, besides float32",
    )
    block_size: Literal[16, 32, 64, 128, 256] = Field(64, description="adaptive: weights that share a scale")
    symmetric: bool = Field(True, description="adaptive: without a zero point per block")
    method: Literal["rtn", "hqq"] = Field(
        "rtn", description="adaptive: round to nearest, or fit scale and zero point of 4-bit weights (hqq)"
    )
    cache: Literal["float32", "int8"] = Field(
        "float32", description="adaptive: precision of the cached keys and values"
    )
    sequences: Count = Field(4, description="validation sequences on which groups are measured")
    seconds: Positive = Field(3.0, description="length of these sequences, in seconds")
    parity_sequences: Count = Field(2, description="test sequences of the parity check, of the maximum length")
    continuation: bool = Field(False, description="include the codec's encoder, so that clips can be continued")
    thresholds: QualityThresholds = QualityThresholds()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.method == "hqq" and self.symmetric:
            raise ValueError("method hqq: fits zero points, so symmetric must be false")
        if self.format == "optimum" and (self.cache != "float32" or self.continuation):
            raise ValueError("format optimum: supports neither cache int8 nor continuation; use format fused")
        return self
