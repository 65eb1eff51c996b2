"""`map_start`: the maps to the teacher's states begin as copies, or are fitted by least squares before the training."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.distill import components
from tests.distill_tasks import tiny_tokens
from tinymusician.distill.codec_distill import ProjectedCodec
from tinymusician.distill.text_distill import state_error
from tinymusician.models.musicgen import load_musicgen
from tinymusician.models.prune_width_codec import prune_codec
from tinymusician.models.prune_width_text import prune_text_encoder
from tinymusician.recipe import load_recipe


def prepared(monkeypatch: pytest.MonkeyPatch, start: str) -> tuple[Any, list[Any]]:
    """A context of the recipe with this `map_start`, and the tasks that would be trained."""
    tasks: list[Any] = []
    monkeypatch.setattr(components, "train", lambda _, stage: tasks.append(stage.task))
    overrides = (f"text_encoder.map_start={start}", f"codec.map_start={start}", "codec.seconds=1")
    recipe = load_recipe("band-ttm", overrides)
    context = SimpleNamespace(recipe=recipe, device="cpu", precision=lambda: "float32", barrier=lambda: None)
    return context, tasks


@pytest.mark.parametrize("start", ["copy", "least_squares"])
def test_text_encoder(tiny_musicgen: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    teacher, tokens = load_musicgen(str(tiny_musicgen)), tiny_tokens(tiny_musicgen, frames=80)
    config = teacher.text_encoder.config
    text = prune_text_encoder(teacher.text_encoder, (0,), config.d_model // 2, 1, config.d_ff // 2)
    copied = copy.deepcopy(text)
    context, tasks = prepared(monkeypatch, start)
    components._train_text(context, teacher, text, tokens, tokens)
    (task,) = tasks
    ids, mask = torch.from_numpy(tokens.text_ids), torch.from_numpy(tokens.text_mask)
    with torch.no_grad():
        expected = teacher.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        before, after = (state_error(one(ids, mask), expected, mask).item() for one in (copied, text))
    assert (after < before) is (start == "least_squares")
    assert torch.equal(copied.to_teacher.weight, text.to_teacher.weight) is (start == "copy")
    assert any(part is text for part in task.module.modules())


@pytest.mark.parametrize("start", ["copy", "least_squares"])
def test_codec(tiny_musicgen: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    teacher, tokens = load_musicgen(str(tiny_musicgen)), tiny_tokens(tiny_musicgen, frames=80)
    filters = teacher.audio_encoder.config.num_filters // 2
    codec = ProjectedCodec(prune_codec(teacher.audio_encoder, filters, 1), teacher.audio_encoder)
    copied = copy.deepcopy(codec.state_dict())
    context, tasks = prepared(monkeypatch, start)
    components._train_codec(context, teacher, codec, tokens, tokens)
    assert len(tasks) == 1
    is_same = all(torch.equal(value, copied[name]) for name, value in codec.state_dict().items())
    assert is_same is (start == "copy")
