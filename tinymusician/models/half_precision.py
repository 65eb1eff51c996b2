"""A frozen decoder in bfloat16 whose heads stay in float32.

Logits of 16 have steps of 0.125 in bfloat16, which guidance multiplies; the heads are few of the weights.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tinymusician.models.protocols import Musicgen


class Float32Head(nn.Linear):
    """A head whose product runs in float32, under autocast too."""

    def forward(self, hidden: Tensor) -> Tensor:
        """The logits, in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float())


def halve_layers(model: Musicgen) -> None:
    """Round the matrices of a decoder's layers to bfloat16, in place, and keep its heads in float32.

    Under autocast to bfloat16, the layers compute what they did before; only the heads are more precise. A second call
    changes nothing.
    """
    for layer in model.decoder.model.decoder.layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.to(torch.bfloat16)
    heads = model.decoder.lm_heads
    for index, head in enumerate(cast("list[nn.Linear]", list(heads))):
        if not isinstance(head, Float32Head):
            heads[index] = Float32Head(head.in_features, head.out_features, bias=False, device="meta")
            heads[index].weight = head.weight
