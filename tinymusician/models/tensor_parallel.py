"""A decoder split over several devices: each holds a slice of every layer's matrices (tensor parallelism).

Queries, keys, values and the first feed-forward matrix are split by their outputs, the other two by their inputs
(Megatron-LM, arXiv 1909.08053, section 3), so that a layer needs one sum over the devices for each of its three
blocks. Embeddings, heads, norms and the text encoder stay whole on each.
"""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from tinymusician.models.protocols import Musicgen
from tinymusician.models.shape import check_split

_ATTENTIONS = ("self_attn", "encoder_attn")
_BY_OUTPUT = ("fc1", *(f"{attention}.{name}_proj" for attention in _ATTENTIONS for name in "qkv"))
_BY_INPUT = ("fc2", *(f"{attention}.out_proj" for attention in _ATTENTIONS))


def split_decoder(model: Musicgen, mesh: DeviceMesh) -> None:
    """Keep this process's slice of each decoder layer of `model`, in place; all of `mesh` must call it.

    From then on a forward pass is a collective: all must run it, on the same inputs, and all get the whole logits.

    Raises:
        ModelError: heads or feed-forward width do not divide evenly.
    """
    check_split(model.config.decoder.num_attention_heads, model.config.decoder.ffn_dim, mesh.size())
    plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in _BY_OUTPUT}
    plan |= {name: RowwiseParallel() for name in _BY_INPUT}
    for layer in model.decoder.model.decoder.layers:
        parallelize_module(layer, mesh, plan)
