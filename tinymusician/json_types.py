"""The type of JSON objects. It imports nothing: laion-clap's environment, which has no pydantic, needs it too."""

from __future__ import annotations

from typing import Any

JsonObject = dict[str, Any]
"""A JSON object whose keys are defined elsewhere, such as the metrics of any kind of run."""
