"""Codes and audio of transformers' `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def generated(model: Any, frames: int, **options: Any) -> tuple[Any, Any]:
    """The codes [K, frames] that `generate` hands to its codec for one prompt, and the wave that comes of them."""
    steps, seen = frames + model.config.decoder.num_codebooks - 1, []
    decode = model.audio_encoder.decode

    def listen(audio_codes: torch.Tensor, *rest: Any, **more: Any) -> Any:
        seen.append(audio_codes)
        return decode(audio_codes, *rest, **more)

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.audio_encoder, "decode", listen)
        wave = model.generate(max_new_tokens=steps, **options)
    return seen[0][0, 0].numpy(), wave[0, 0].numpy()
