"""Width-pruned students: selected weights, and projections of hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.launch.validate import check_shapes
from tests.distill_tasks import task_of, tiny_tokens
from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.hidden_states import ProjectedDecoder, followed_layers, hidden_loss
from tinymusician.distill.signals import OnlineTeacher
from tinymusician.distill.task import HiddenLossConfig
from tinymusician.errors import RecipeError
from tinymusician.models.conditional_decoder import ConditionedDecoder
from tinymusician.models.musicgen import load_musicgen
from tinymusician.models.prune_layers import prune_layers
from tinymusician.models.prune_width import channels, prune_width
from tinymusician.recipe import load_recipe
from tinymusician.training.engine import AdamConfig
from tinymusician.training.torch_engine import TorchEngine


@pytest.fixture
def tokens(tiny_musicgen: Path) -> TokenDataset:
    return tiny_tokens(tiny_musicgen)


def logits(model: Any, tokens: TokenDataset) -> torch.Tensor:
    return OnlineTeacher(model, tokens, "conditional", 3.0, torch.float32)(np.arange(8)).logits


def test_full_width_is_the_teacher(tiny_musicgen: Path, tokens: TokenDataset) -> None:
    """Keeping everything loses nothing, and fewer layers are those that are cut."""
    teacher = load_musicgen(str(tiny_musicgen))
    same = prune_width(teacher, [0, 1, 2, 3], 32, 4, 48)
    torch.testing.assert_close(logits(same, tokens), logits(teacher, tokens))
    torch.testing.assert_close(
        logits(prune_width(teacher, [0, 2], 32, 4, 48), tokens), logits(prune_layers(teacher, [0, 2]), tokens)
    )


def test_silent_lines_need_no_coverage(tiny_musicgen: Path, tokens: TokenDataset) -> None:
    """Neurons that give nothing on are those that go, and nothing changes."""
    teacher = load_musicgen(str(tiny_musicgen))
    silent_neurons = [1, 2, 5, 7, 11, 13, 17, 40]
    with torch.no_grad():
        for layer in teacher.decoder.model.decoder.layers:
            layer.fc2.weight[:, silent_neurons] = 0
    student = prune_width(teacher, [0, 1, 2, 3], 32, 4, 40)
    assert student.config.decoder.ffn_dim == 40
    torch.testing.assert_close(logits(student, tokens), logits(teacher, tokens))


def test_largest_heads_are_selected(tiny_musicgen: Path) -> None:
    """Of each attention those whose output matrix is largest, in their order."""
    teacher = load_musicgen(str(tiny_musicgen))
    attention = teacher.decoder.model.decoder.layers[1].self_attn
    with torch.no_grad():
        attention.out_proj.weight[:, 8:16] *= 1e-3  # the second of four heads
    student = prune_width(teacher, [1], 24, 3, 48)
    channel_rows, head_rows = channels(24, 32), torch.cat([torch.arange(8), torch.arange(16, 32)])
    result = student.decoder.model.decoder.layers[0].self_attn
    torch.testing.assert_close(result.out_proj.weight, attention.out_proj.weight[channel_rows][:, head_rows])
    torch.testing.assert_close(
        result.v_proj.weight, attention.v_proj.weight[head_rows][:, channel_rows] * (32 / 24) ** 0.5
    )


def test_text_width_equal_to_the_decoders_is_rejected(tiny_musicgen: Path) -> None:
    with pytest.raises(RecipeError, match=r"student\.width = 16: is that of the text states"):
        prune_width(load_musicgen(str(tiny_musicgen)), [0], 16, 2, 24)


def test_channels_keep_their_frequencies() -> None:
    """A channel's place in its half is its frequency: the student's own positions are near those it was cut from."""
    assert channels(4, 8).tolist() == [0, 3, 4, 7]
    retained = channels(160, 256)
    assert len(retained.unique()) == 160
    halves = retained[:80], retained[80:] - 128
    assert torch.equal(*halves)
    grid, cut = torch.arange(80) / 79, halves[0] / 127
    assert (grid - cut).abs().max() < 0.5 / 127 + 1e-6


def test_width_pruned_student_is_a_trainable_musicgen(
    tiny_musicgen: Path, tokens: TokenDataset, tmp_path: Path
) -> None:
    teacher = load_musicgen(str(tiny_musicgen))
    student = prune_width(teacher, [0, 3], 24, 3, 24)
    assert student.decoder.model.decoder.layers[0].self_attn.q_proj.weight.shape == (24, 24)
    source = OnlineTeacher(teacher, tokens, "guided", 3.0, torch.float32, layers=[0, 3])
    task = task_of(student, source, hidden=HiddenLossConfig("cosine", 0.5, 32))
    engine = TorchEngine(task.module, AdamConfig())
    before, hidden = task.validate(engine), []
    for step in range(60):
        loss, scalars = task.loss(engine, task.batch(step, 0, 1), step)
        engine.step(loss, 3e-3)
        hidden.append(scalars["hidden"].item())
    assert task.validate(engine)["kl"] < 0.5 * before["kl"]
    assert hidden[-1] < 0.5 * hidden[0]
    student.save_pretrained(tmp_path)
    assert load_musicgen(str(tmp_path)).config.decoder.hidden_size == 24


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_hidden_losses_agree_with_float64(kind: Any) -> None:
    rng = np.random.default_rng(2)
    student, teacher = rng.normal(size=(2, 3, 5, 8)), rng.normal(size=(2, 3, 5, 8)) * 4
    mask = rng.random((3, 4, 5)) < 0.4
    carries = mask.any(1)
    actual = hidden_loss(kind, *(torch.from_numpy(each) for each in (student, teacher)), torch.from_numpy(mask))
    s, t = student[:, carries], teacher[:, carries]
    if kind == "cosine":
        expected = (1 - (s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)).mean()
    else:
        expected = (((s - t) ** 2).mean((1, 2)) / (t**2).mean((1, 2))).mean()
    assert actual.item() == pytest.approx(expected, rel=1e-5)


def test_projected_decoder_returns_logits_and_hidden_states(tiny_musicgen: Path, tokens: TokenDataset) -> None:
    """Its logits are the decoder's; the states before projection are what transformers' layers give."""
    student = prune_layers(load_musicgen(str(tiny_musicgen)), [0, 3])
    torch.manual_seed(0)
    following, seen = ProjectedDecoder(student, 32).eval(), []
    inputs = torch.from_numpy(np.random.default_rng(0).integers(0, 16, (2, 4, 9)))
    text = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.int64)
    student.decoder.model.decoder.layers[0].register_forward_hook(lambda m, i, output: seen.append(output[0]))
    with torch.no_grad():
        result, states = following(inputs, *text)
        torch.testing.assert_close(result, ConditionedDecoder(student)(inputs, *text))
        torch.testing.assert_close(states[0], following.projections[0](seen[0]))
    assert states.shape == (2, 2, 12 - 3, 32)


def test_layer_mapping() -> None:
    assert followed_layers(2, 8) == [3, 7]
    assert followed_layers(24, 48) == list(range(1, 48, 2))
    assert followed_layers(3, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("width=96", "heads=4", "feed_forward=512"), r"student\.width = 96: must be student\.heads times .* 4 x 32"),
        (("width=288", "heads=9", "feed_forward=512"), r"student\.width = 288: even numbers up to the teacher's 256"),
        (("width=128", "heads=4", "feed_forward=2048"), r"student\.feed_forward = 2048: at most the teacher's 1024"),
    ],
)
def test_shapes_that_cannot_be_pruned(sets: tuple[str, ...], message: str) -> None:
    words = ("student.kind=prune_width", "student.layers=[1, 7]", *(f"student.{value}" for value in sets))
    with pytest.raises(RecipeError, match=message):
        check_shapes(load_recipe("band", words))


def test_states_need_the_teacher() -> None:
    with pytest.raises(RecipeError, match=r"needs hidden states, so signals\.source must be online"):
        load_recipe("band", ("hidden.weight=1", "signals.source=cached"))
