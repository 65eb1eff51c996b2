"""Precision plans: the precision of each group of weights, in a file that can be edited and applied again.

Groups:

    layers.N        all products of one decoder layer          embeddings      the decoder's tables
    lm_heads.K      the head of codebook K                     cross           cross-attention keys and values
    text            the text encoder's products                text_embedding  its table of tokens
    codec           the codec's decoder; its encoder, where a bundle has it, stays in float32

Bundles that answer questions have the groups `encoder`, `projector`, `layers.N` and `embeddings`, which are the table
of tokens and the head; the front end stays in float32.

`lm_heads` are all heads together; as long as they share a precision, they are one product.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tinymusician.errors import PlanError
from tinymusician.inputs import input_path, scheme_of
from tinymusician.json_types import JsonObject
from tinymusician.settings import Precision

Method = Literal["rtn", "hqq"]
_GROUPS = r"layers\.\d+|lm_heads(\.\d+)?|embeddings|cross|text|text_embedding|codec|encoder|projector"
_TABLES = ("embeddings", "text_embedding", "codec")
FRONT_END = "front_end"
"""The group of an audio encoder's spectra, which are exact in every plan."""


class PrecisionPlan(BaseModel):
    """Precisions by group. `default` is for every decoder layer and other group that is not named.

    `int8` and `int4` store weights in blocks of `block_size` with one scale each (and one zero point each unless
    `symmetric`); activations are rounded to 8 bits within the product. With `kernel: channels`, int8 products have one
    scale per channel instead, and one for the activations of all rows: less exact, but faster with four rows or more.
    `float16` halves the file; on a CPU the products still run in float32. `method`: `rtn` rounds to nearest, `hqq` fits
    scales and zero points to the weights (4 bits), and leaves activations in float32. `cache` is the precision of
    self-attention's keys and values; int8 has one scale per channel, calibrated when the plan is applied.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    default: Precision = "float32"
    groups: dict[str, Precision] = {}
    block_size: Literal[16, 32, 64, 128, 256] = 128
    symmetric: bool = True
    method: Method = "rtn"
    cache: Literal["float32", "int8"] = "float32"
    kernel: Literal["blocks", "channels"] = "blocks"
    uniform_int8: bool = Field(
        False, description="ONNX Runtime's dynamic quantization of everything, as a counter-example"
    )
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    note: Annotated[str, Field(description="where the plan comes from")] = ""

    @model_validator(mode="after")
    def _check_values(self) -> PrecisionPlan:
        for group, precision in self.groups.items():
            if not re.fullmatch(_GROUPS, group):
                raise ValueError(f"groups.{group}: no such group")
            if group == "codec" and precision not in ("float32", "float16"):
                raise ValueError(
                    f"groups.codec = {precision}: allowed are float32 and float16; its work is convolution"
                )
        alike = not self.groups and (self.default, self.cache, self.kernel) == ("float32", "float32", "blocks")
        if self.uniform_int8 and not alike:
            raise ValueError("uniform_int8: treats everything alike; leave default, groups, cache and kernel out")
        if self.method == "hqq" and self.symmetric:
            raise ValueError("method hqq: fits zero points, so symmetric must be false")
        return self

    def of(self, group: str) -> Precision:
        """The precision of a group. An integer `default` is for products only, not for tables and the codec."""
        if group in ("codec_encoder", FRONT_END):
            return "float32"
        for name in (group, "lm_heads" if group.startswith("lm_heads.") else group):
            if name in self.groups:
                return self.groups[name]
        if group in _TABLES and self.default in ("int8", "int4"):
            return "float16" if group != "codec" else "float32"
        return self.default


PLANS: dict[str, dict[str, object]] = {
    "float32": {},
    "paper": {"default": "float16", "groups": {"text": "int8", "text_embedding": "int8", "codec": "float32"}},
    "int8": {"uniform_int8": True},
    "server": {
        "default": "int8",
        "groups": {"embeddings": "int8", "text_embedding": "int8", "codec": "float16"},
        "kernel": "channels",
        "cache": "int8",
    },
}
"""The packaged plans: the export, the paper's, its counter-example, and one for servers with many requests at once.

`adaptive` is not among them, since it is measured for each model.
"""


def packaged_plan(name: str) -> PrecisionPlan:
    """A packaged plan.

    Raises:
        PlanError: there is none of this name.
    """
    if name not in PLANS:
        raise PlanError(f"plan {name!r}: allowed are {', '.join(PLANS)}, adaptive, or a YAML file's path")
    return PrecisionPlan(name=name, **PLANS[name])


def is_file(name: str) -> bool:
    """Whether a name is a plan's file: a path, an address or an artifact."""
    return "/" in name or name.endswith((".yaml", ".yml")) or scheme_of(name) == "artifact"


def load_plan(name: str | JsonObject) -> PrecisionPlan:
    """A packaged plan by name, a file by path, or a plan's content.

    Raises:
        PlanError: there is no such plan, or a key or value is not allowed.
    """
    if isinstance(name, str) and not is_file(name):
        return packaged_plan(name)
    try:
        content = name if isinstance(name, dict) else yaml.safe_load(input_path(name).read_text("utf-8"))
        return PrecisionPlan.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f"plan {name}: cannot be read ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(key) for key in problem["loc"]) or "plan"
        raise PlanError(f"plan {name}: {where}: {problem['msg'].removeprefix('Value error, ')}") from None


def coarsest(plan: PrecisionPlan) -> Precision:
    """The precision with the fewest bits that a plan uses."""
    order: tuple[Precision, ...] = ("int4", "int8", "float16", "float32")
    used = {plan.default, *plan.groups.values()} | ({"int8"} if plan.uniform_int8 or plan.cache == "int8" else set())
    return next(precision for precision in order if precision in used)


def save_plan(plan: PrecisionPlan, path: Path) -> None:
    """Write a plan as YAML that `load_plan` reads."""
    path.write_text(yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False), "utf-8")
