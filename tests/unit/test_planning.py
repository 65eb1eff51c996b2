"""Plans on devices that are not here: closed forms of the roofline, bytes as they are stored, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from jobs.launch.planning import plan_distill
from jobs.launch.prepare import with_steps
from tinymusician.distill.cached import pack
from tinymusician.errors import RecipeError, RunError
from tinymusician.models.flops import forward_flops
from tinymusician.models.roofline import (
    BANDWIDTH_SHARE,
    PRODUCT_SHARE,
    ROW_MULTIPLE,
    Cluster,
    Device,
    decode_step_seconds,
    forward_seconds,
    parse_cluster,
    reduce_seconds,
    sampling_seconds,
)
from tinymusician.models.sampling import INVARIANT_ROWS
from tinymusician.models.tensor_shapes import DecoderShape
from tinymusician.recipe import Recipe, load_recipe

SHAPE = DecoderShape(layers=4, width=64, feed_forward=256, heads=4)
INFINITE = 1e30
FAST = Device(
    name="fast",
    products=INFINITE,
    few_products=((1, INFINITE),),
    bandwidth=INFINITE,
    attention=INFINITE,
    objective=INFINITE,
    draws=INFINITE,
    layer_seconds=0.0,
    memory=INFINITE,
    link=INFINITE,
    network=INFINITE,
    weight_bytes=2,
)


def device(**changes: float) -> Device:
    return replace(FAST, **changes)  # type: ignore[arg-type]


def paper(*overrides: str) -> Recipe:
    return with_steps(load_recipe("tinymusician", overrides))


class TestRoofline:
    def test_names(self) -> None:
        h100 = parse_cluster("h100")
        assert h100 is not None
        assert (h100.count, h100.device.products) == (1, PRODUCT_SHARE * 989e12)
        assert h100.device.bandwidth == BANDWIDTH_SHARE * 3.35e12
        for text, nodes, per_node in (("H100x8", 1, 8), ("a100x4x16", 16, 4)):
            cluster = parse_cluster(text)
            assert cluster is not None
            assert (cluster.nodes, cluster.per_node, cluster.count) == (nodes, per_node, nodes * per_node)

    @pytest.mark.parametrize("text", ["", "h1000", "h100x", "h100x0", "h100x8x2x2", "x8", "8xh100", "h100 x8"])
    def test_other_names(self, text: str) -> None:
        assert parse_cluster(text) is None

    def test_each_bound_alone(self) -> None:
        """With everything else infinitely fast, a rate gives operations over it, and a bandwidth bytes over it."""
        assert forward_seconds(device(products=1e9), SHAPE, 3, 50) == pytest.approx(forward_flops(SHAPE, 3, 50) / 1e9)
        step = decode_step_seconds(device(bandwidth=1e9), SHAPE, 2, 100, 10)
        assert step == pytest.approx(2 * SHAPE.parameters / 1e9), "all weights are read"
        cache = 2 * 2 * SHAPE.layers * SHAPE.width * 2 * (100 + 10)
        assert decode_step_seconds(device(attention=1e9), SHAPE, 2, 100, 10) == pytest.approx(cache / 1e9)
        logits = SHAPE.codebooks * SHAPE.vocabulary
        assert decode_step_seconds(device(draws=1e9), SHAPE, 2, 100, 10) == pytest.approx(logits / 1e9)
        assert decode_step_seconds(device(layer_seconds=1e-3), SHAPE, 2, 100, 10) == pytest.approx(4e-3)

    @pytest.mark.parametrize(("rows", "rate"), [(2, 1e9), (16, 1e9), (40, 1e9), (64, 3e9), (256, 3e9)])
    def test_products_of_few_rows(self, rows: int, rate: float) -> None:
        few = replace(FAST, few_products=((16, 1e9), (64, 3e9)))
        assert decode_step_seconds(few, SHAPE, rows, 0, 0) == pytest.approx(forward_flops(SHAPE, rows, 1) / rate)

    def test_rows_are_filled_up(self) -> None:
        assert ROW_MULTIPLE == INVARIANT_ROWS
        one, eight, nine = (sampling_seconds(device(draws=1e9), SHAPE, count, 50, 2) for count in (1, 8, 9))
        assert one == eight == pytest.approx(nine / 2)

    def test_gradients_by_a_ring(self) -> None:
        """2 (N - 1) / N of the bytes, over the network if the ring leaves the machine."""
        cluster = Cluster(device(link=1e9, network=1e8), per_node=8, nodes=2)
        assert reduce_seconds(cluster, 1000, 1) == 0
        assert reduce_seconds(cluster, 1000, 8) == pytest.approx(2 * 7 / 8 * 2000 / 1e9)
        assert reduce_seconds(cluster, 1000, 16) == pytest.approx(2 * 15 / 16 * 2000 / 1e8)


class TestPlan:
    def test_bytes_are_those_that_are_stored(self) -> None:
        plan = plan_distill(paper(), "h100")
        frames, sequences = 500, 160 * 8 + 40
        assert plan.samples_bytes == np.zeros((sequences, 4, frames), np.int16).nbytes
        assert plan.signals_bytes == 0
        student = 420_000_000
        assert plan.checkpoints_bytes == pytest.approx(3 * 12 * student, rel=0.01)

    @pytest.mark.parametrize("top_k", [None, 64])
    def test_signals_in_shards(self, top_k: int | None) -> None:
        """As `pack` makes them."""
        plan = plan_distill(paper("signals={source: cached}", f"signals.top_k={top_k or 'null'}"), "h100")
        packed = pack(torch.zeros(1, 2, 4, 503, 2048), top_k)
        assert plan.signals_bytes == (160 * 8 + 20) * sum(array.nbytes for array in packed.values())

    def test_eight_devices_share_the_work(self) -> None:
        one, eight = plan_distill(paper(), "h100"), plan_distill(paper(), "h100x8")
        assert eight.sampling_seconds == pytest.approx(one.sampling_seconds / 8)
        assert one.step_seconds / 8 < eight.step_seconds < one.step_seconds / 6
        assert eight.seconds < one.seconds
        assert eight.device_hours > one.device_hours

    def test_what_cannot_fit_is_refused(self) -> None:
        with pytest.raises(
            RecipeError, match=r"GiB per device are needed, and a l4 has 22; lower training\.batch_size"
        ):
            plan_distill(paper("sequences.seconds=30"), "l4")

    def test_more_devices_than_microbatches(self) -> None:
        with pytest.raises(RunError, match=r"--workers 64: a step has 8 microbatches .* at most 8 workers are allowed"):
            plan_distill(paper(), "h100x8x8")
        assert plan_distill(paper("training.global_batch=256"), "h100x8x8").devices == 64

    def test_unknown_devices_and_models(self) -> None:
        with pytest.raises(RecipeError, match="allowed are here, or DEVICE"):
            plan_distill(paper(), "tpu")
        with pytest.raises(RecipeError, match="shapes are not known"):
            plan_distill(paper("teacher.model=someone/else"), "h100")
