"""How long a device takes, from the shapes of models: a roofline (Williams et al., 2009, doi 10.1145/1498765.1498785).

The time of a piece of work is the larger of its operations over the device's rate and its bytes over the bandwidth. The
peaks of GPUs are NVIDIA's data sheets'; `PRODUCT_SHARE` and `BANDWIDTH_SHARE` of them are what kernels reach.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tinymusician.models.flops import forward_flops
from tinymusician.models.tensor_shapes import DecoderShape

PRODUCT_SHARE = 0.5
"""Of the peak, for the matrix products of training: Megatron-LM and PaLM report 0.44 to 0.57 of it (arXiv 2104.04473,
table 1; 2204.02311, table 3)."""
BANDWIDTH_SHARE = 0.8
"""Of the peak, for copies and elementwise kernels: BabelStream on an A100 reaches 0.8 to 0.9."""
_GPUS = {
    "b200": (2250e12, 8.0e12, 192e9, 900e9),
    "h200": (989e12, 4.8e12, 141e9, 450e9),
    "h100": (989e12, 3.35e12, 80e9, 450e9),
    "a100": (312e12, 2.04e12, 80e9, 300e9),
    "l40s": (362e12, 0.864e12, 48e9, 32e9),
    "l4": (121e12, 0.3e12, 24e9, 16e9),
    "a10": (125e12, 0.6e12, 24e9, 16e9),
    "rtx4090": (165e12, 1.008e12, 24e9, 16e9),
}
"""Dense bfloat16 operations per second, bytes per second of memory, bytes of memory, and bytes per second in one
direction to the other GPUs of a machine (NVLink, or PCIe)."""
_NETWORK = 50e9
"""Bytes per second of a GPU between machines: 400 Gb/s, as machines with eight of these GPUs have for each."""
_LAUNCH_SECONDS = 40e-6
"""A layer's kernels of one position, replayed from a CUDA graph."""
_LOGIT_BYTES = 60.0
"""Memory traffic of the objective for one logit: about fifteen passes in float32, chunk by chunk, with the gradient;
and of a draw, in float64."""
_LAYER_BYTES = 34.0
"""Traffic of a layer's elementwise work per position and channel forward, in 16 bits: what it would store (arXiv
2205.05198, eq. 2)."""
_ADAM_BYTES = 36.0
"""Traffic of an update per parameter: gradient norm, gradient, weight and moments, in float32."""


TEXT_TOKENS = 24
"""The tokens of a caption."""
ROW_MULTIPLE = 8
"""Rows of a batch of samples are filled up to a multiple of this (`tinymusician.models.sampling.INVARIANT_ROWS`)."""


@dataclass(frozen=True)
class Device:
    """What a device reaches.

    `products` are operations per second with many rows, `few_products` with as few as a decode step has, by number of
    rows. `bandwidth` is bytes per second, `attention` those of a decode step's keys and values. `objective` and `draws`
    are logits per second of the training objective, and of drawing codes. `layer_seconds` is what a layer takes beside
    its products, at one position. `memory` is in bytes. `link` and `network` are bytes per second to others in its
    machine and in other machines; `weight_bytes` is the size of a weight in products.
    """

    name: str
    products: float
    few_products: tuple[tuple[int, float], ...]
    bandwidth: float
    attention: float
    objective: float
    draws: float
    layer_seconds: float
    memory: float
    link: float
    network: float
    weight_bytes: int


@dataclass(frozen=True)
class Cluster:
    """`nodes` machines with `per_node` devices each."""

    device: Device
    per_node: int
    nodes: int = 1

    @property
    def count(self) -> int:
        """The number of devices."""
        return self.per_node * self.nodes


def parse_cluster(text: str) -> Cluster | None:
    """`h100`, `h100x8` (eight in one machine) or `h100x8x2` (two such machines); None for anything else."""
    match = re.fullmatch(r"([a-z0-9]+?)(?:x([1-9]\d{0,3}))?(?:x([1-9]\d{0,3}))?", text.lower())
    if match is None or match[1] not in _GPUS:
        return None
    peak, bandwidth, memory, link = _GPUS[match[1]]
    device = Device(
        name=match[1],
        products=PRODUCT_SHARE * peak,
        few_products=((1, PRODUCT_SHARE * peak),),
        bandwidth=BANDWIDTH_SHARE * bandwidth,
        attention=BANDWIDTH_SHARE * bandwidth,
        objective=BANDWIDTH_SHARE * bandwidth / _LOGIT_BYTES,
        draws=BANDWIDTH_SHARE * bandwidth / _LOGIT_BYTES,
        layer_seconds=_LAUNCH_SECONDS,
        memory=memory,
        link=BANDWIDTH_SHARE * link,
        network=BANDWIDTH_SHARE * _NETWORK,
        weight_bytes=2,
    )
    return Cluster(device, int(match[2] or 1), int(match[3] or 1))


def device_names() -> list[str]:
    """The devices of `parse_cluster`."""
    return list(_GPUS)


def forward_seconds(device: Device, shape: DecoderShape, rows: int, steps: int) -> float:
    """A forward pass over `rows` sequences of `steps` positions: products, elementwise work, and writing the logits."""
    elementwise = _LAYER_BYTES * device.weight_bytes / 2 * rows * steps * shape.width * shape.layers
    logits = 4.0 * rows * steps * shape.codebooks * shape.vocabulary
    return forward_flops(shape, rows, steps) / device.products + (elementwise + logits) / device.bandwidth


def objective_seconds(device: Device, shape: DecoderShape, rows: int, steps: int) -> float:
    """The objective on the logits of `rows` sequences, with its gradient."""
    return rows * steps * shape.codebooks * shape.vocabulary / device.objective


def update_seconds(device: Device, parameters: int) -> float:
    """AdamW's update of a whole model."""
    return _ADAM_BYTES * parameters / device.bandwidth


def reduce_seconds(cluster: Cluster, parameters: int, workers: int) -> float:
    """The sum of gradients over workers by a ring (bytes · 2 (N - 1) / N), over the slowest link; not overlapped."""
    if workers == 1:
        return 0.0
    device, is_apart = cluster.device, workers > cluster.per_node
    traffic = 2 * (workers - 1) / workers * device.weight_bytes * parameters
    return traffic / (min(device.link, device.network) if is_apart else device.link)


def decode_step_seconds(device: Device, shape: DecoderShape, rows: int, length: float, text: int) -> float:
    """A step of the decode loop for `rows` rows (with guidance, two for each sequence) at `length` cached positions.

    Products read all weights; attention reads the keys and values of the sequence and of `text` tokens.
    """
    rate = max((few for few in device.few_products if few[0] <= rows), default=device.few_products[0])[1]
    products = max(forward_flops(shape, rows, 1) / rate, device.weight_bytes * shape.parameters / device.bandwidth)
    cached = 2.0 * device.weight_bytes * shape.layers * shape.width * rows * (length + text)
    draws = rows / 2 * shape.codebooks * shape.vocabulary / device.draws
    return products + cached / device.attention + draws + device.layer_seconds * shape.layers


def sampling_seconds(device: Device, shape: DecoderShape, sequences: int, frames: int, passes: int) -> float:
    """A batch of sequences from the first code to the last; it is filled up to a multiple of `ROW_MULTIPLE`."""
    steps, rows = frames + shape.codebooks - 1, -(-sequences // ROW_MULTIPLE) * ROW_MULTIPLE
    return steps * decode_step_seconds(device, shape, passes * rows, steps / 2, TEXT_TOKENS)
