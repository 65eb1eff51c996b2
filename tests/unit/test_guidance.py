"""Guidance-conditioned students: sampled scales, training, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distill_tasks import task_of, tiny_tokens
from tests.tiny import CAPTIONS
from tinymusician.data.tokens import TokenDataset, tokenize_captions
from tinymusician.distill.guidance_scales import FixedScaleSource, GuidanceSampler, integer_scales
from tinymusician.distill.sampling_stats import sampling_logits
from tinymusician.distill.signals import OnlineTeacher
from tinymusician.distill.task import DistillTask
from tinymusician.errors import RecipeError
from tinymusician.evaluate.generators import TorchGenerator
from tinymusician.models.conditional_decoder import ConditionedDecoder, guidance_condition
from tinymusician.models.guidance import (
    add_guidance_conditioning,
    is_guidance_conditioned,
    plays_in_one_pass,
    sampling_scale,
)
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.models.prune_layers import prune_layers
from tinymusician.models.saving import save_musicgen
from tinymusician.recipe import load_recipe
from tinymusician.training.engine import AdamConfig
from tinymusician.training.torch_engine import TorchEngine

ROWS = np.arange(8)


@pytest.fixture
def tokens(tiny_musicgen: Path) -> TokenDataset:
    return tiny_tokens(tiny_musicgen)


def both_passes(folder: Path, tokens: TokenDataset) -> OnlineTeacher:
    return OnlineTeacher(load_musicgen(str(folder)), tokens, "conditional", 3.0, torch.float32)


def task(folder: Path, tokens: TokenDataset, student: Any, scales: GuidanceSampler) -> DistillTask:
    return task_of(student, both_passes(folder, tokens), scales=scales)


def test_each_row_has_its_guidance_scale(tiny_musicgen: Path, tokens: TokenDataset) -> None:
    """The teacher's logits are s·with + (1 - s)·without, of the two passes; every step draws other scales."""
    scales = GuidanceSampler(1.0, 5.0)
    of_student = task(tiny_musicgen, tokens, add_guidance_conditioning(load_musicgen(str(tiny_musicgen)), 1, 5), scales)
    batch = of_student.batch(3, 0, 1)
    row_scales = batch.sequences.scale
    assert row_scales.shape == (8,)
    assert 1 <= row_scales.min() < row_scales.max() <= 5
    with_text, without = both_passes(tiny_musicgen, tokens)(of_student.rows(3, 0, 1)).logits.chunk(2)
    s = row_scales[:, None, None, None]
    torch.testing.assert_close(batch.logits, s * with_text + (1 - s) * without, rtol=1e-4, atol=1e-4)
    assert torch.equal(row_scales, of_student.batch(3, 0, 1).sequences.scale)
    assert not torch.equal(row_scales, of_student.batch(4, 0, 1).sequences.scale)


def test_new_student_ignores_guidance(tiny_musicgen: Path, tokens: TokenDataset) -> None:
    """Its initial logits are its teacher's with text, for every scale."""
    teacher = load_musicgen(str(tiny_musicgen))
    student = add_guidance_conditioning(prune_layers(teacher, range(4)), 1.0, 5.0)
    signals = both_passes(tiny_musicgen, tokens)(ROWS)
    result = sampling_logits(
        student, ConditionedDecoder(student), FixedScaleSource(lambda_source(signals), 4.0)(ROWS).sequences
    )
    torch.testing.assert_close(result, signals.logits[:8])


def lambda_source(signals: Any) -> Any:
    class Same:
        prefetch = 0

        def __call__(self, rows: Any, then: Any = ()) -> Any:
            return signals

    return Same()


def test_one_pass_learns_all_scales(tiny_musicgen: Path, tokens: TokenDataset) -> None:
    """A student is closer to its teacher with the right scale than with a wrong one."""
    student = add_guidance_conditioning(load_musicgen(str(tiny_musicgen)), 1.0, 5.0)
    student.generation_config.guidance_scale = 3.0
    learning = task(tiny_musicgen, tokens, student, GuidanceSampler(1.0, 5.0))
    engine = TorchEngine(learning.module, AdamConfig())
    before = learning.validate(engine)
    assert {"kl@1", "kl@3", "kl@5"} <= set(before)
    assert before["kl"] == pytest.approx((before["kl@1"] + before["kl@3"] + before["kl@5"]) / 3)
    for step in range(150):
        loss, _ = learning.loss(engine, learning.batch(step, 0, 1), step)
        engine.step(loss, 3e-3)
    after = learning.validate(engine)
    assert after["kl@5"] < 0.3 * before["kl@5"]
    source = both_passes(tiny_musicgen, tokens)

    def distance(teacher_scale: float, student_scale: float) -> float:
        signals = FixedScaleSource(source, teacher_scale)(ROWS)
        sequences = signals.sequences._replace(scale=torch.full((8,), student_scale))
        logits = sampling_logits(student, learning.module, sequences)
        log_p, log_q = (each[signals.sequences.mask].log_softmax(-1) for each in (signals.logits, logits))
        return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())

    assert distance(1, 1) < distance(1, 5)
    assert distance(5, 5) < distance(5, 1)


def test_guidance_conditioned_student_survives_saving(tiny_musicgen: Path, tmp_path: Path) -> None:
    student = add_guidance_conditioning(load_musicgen(str(tiny_musicgen)), 1.0, 5.0)
    with torch.no_grad():
        student.guidance_embedding.last.weight.normal_()
    tokenizer = load_tokenizer(str(tiny_musicgen))
    save_musicgen(tmp_path, student, tokenizer)
    loaded = load_musicgen(str(tmp_path))
    assert is_guidance_conditioned(loaded)
    assert (plays_in_one_pass(loaded), sampling_scale(loaded, 4.0)) == (True, 1.0)
    ids, mask = (torch.from_numpy(each) for each in tokenize_captions(tokenizer, CAPTIONS))
    with torch.no_grad():
        states = [
            guidance_condition(model, ids, mask, scale).states for model in (student, loaded) for scale in (2.0, 4.0)
        ]
    assert torch.equal(states[0], states[2])
    assert torch.equal(states[1], states[3])
    assert not torch.equal(states[0], states[1])
    generator = TorchGenerator(loaded, tokenizer)
    codes = np.random.default_rng(1).integers(0, 16, (4, 4, 6))
    assert len(generator.forced(CAPTIONS, codes, 2.0)) == 4, "one pass"
    plain = load_musicgen(str(tiny_musicgen))
    assert not is_guidance_conditioned(plain)
    assert sampling_scale(plain, 4.0) == 4.0


def test_ranges() -> None:
    assert integer_scales(None) == []
    assert integer_scales((1.0, 5.0)) == [1, 2, 3, 4, 5]
    assert integer_scales((1.5, 3.25)) == [1.5, 2, 3, 3.25]
    ranged = "teacher.guidance_range=[1, 5]"
    assert load_recipe("band", (ranged, "teacher.target=guided")).teacher.passes == "conditional"
    with pytest.raises(RecipeError, match="needs target guided, which conditions the student on its scale"):
        load_recipe("band", (ranged,))
    with pytest.raises(RecipeError, match="must rise and contain the default, guidance_scale 2"):
        load_recipe("band", ("teacher.guidance_range=[3, 5]", "teacher.target=guided"))
