"""Tensor parallelism for a decoder: each device holds a slice of every layer's matrices.

Queries, keys, values and the first feed-forward matrix are split by their outputs, the other two by their inputs
(Megatron-LM, arXiv 1909.08053, section 3), so that a layer needs one all-reduce for each of its three blocks.
Embeddings, heads, norms and the text encoder are replicated.
"""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from tinymusician.models.protocols import Musicgen
from tinymusician.models.shape import check_tensor_parallel

_ATTENTIONS = ("self_attn", "encoder_attn")
_BY_OUTPUT = ("fc1", *(f"{attention}.{name}_proj" for attention in _ATTENTIONS for name in "qkv"))
_BY_INPUT = ("fc2", *(f"{attention}.out_proj" for attention in _ATTENTIONS))


def shard_decoder(model: Musicgen, mesh: DeviceMesh) -> None:
    """Replace each decoder layer by this process's slice of it, in place; all ranks of `mesh` must call it.

    Afterwards a forward pass is a collective: all ranks run it on the same inputs, and all get the complete logits.

    Raises:
        ModelError: heads or feed-forward width do not divide evenly.
    """
    check_tensor_parallel(model.config.decoder.num_attention_heads, model.config.decoder.ffn_dim, mesh.size())
    plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in _BY_OUTPUT}
    plan |= {name: RowwiseParallel() for name in _BY_INPUT}
    for layer in model.decoder.model.decoder.layers:
        parallelize_module(layer, mesh, plan)
