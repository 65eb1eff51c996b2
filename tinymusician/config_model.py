"""The bases of configuration sections and of stored documents."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A measured number: one that is not finite is null in JSON, and is read as NaN."""


class ConfigModel(BaseModel):
    """A frozen section of a recipe, a manifest or an endpoint's configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Document(BaseModel):
    """A frozen JSON document that one step writes and others read; numbers that are not finite are null in JSON."""

    model_config = ConfigDict(frozen=True)
