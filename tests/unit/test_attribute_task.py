"""The fine-tuning of an audio encoder on labels that are unbalanced."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinymusician.models.audio_encoder import AudioEncoder, AudioEncoderShape
from tinymusician.understand.attribute_task import IGNORE_INDEX, AttributeTask, LabelledSpectra, class_weights

CLASSES = {"colour": 3}
LABELS = np.array([[0]] * 9 + [[1]] * 3 + [[IGNORE_INDEX]] * 4, np.int64)


def task() -> AttributeTask:
    torch.manual_seed(0)
    encoder = AudioEncoder(AudioEncoderShape(width=8, layers=1, heads=2, feed_forward=8))
    spectra = np.random.default_rng(0).normal(size=(16, 1, 80, 32)).astype(np.float16)
    onsets = np.zeros((16, 2, 8), np.int64)
    onsets[:, 0, 0] = 1
    clips = LabelledSpectra(spectra, LABELS, np.zeros((16, 2), np.int64), onsets)
    return AttributeTask(encoder, CLASSES, 2, clips, clips, 16, seed=0)


def test_weights_give_every_class_the_same_share() -> None:
    """Nine of class 0, three of class 1, none of class 2: weights 12 / 18 and 12 / 6."""
    assert class_weights(LABELS[:, 0], 3).tolist() == pytest.approx([2 / 3, 2, 1])


def test_head_that_always_says_the_frequent_class_scores_chance() -> None:
    """Its loss is the mean of both classes' cross-entropies, however often each occurs."""
    trained = task()
    head = trained.module.heads["colour"]
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([2.0, 0.0, -50.0]))
        for one in (trained.module.pitch_head, trained.module.onset_head):
            one.weight.zero_()
            one.bias.zero_()
        figures = trained.validate(trained.module)
    assert figures["colour"] == 0.5
    expected = (np.log1p(np.exp(-2)) + 2 + np.log1p(np.exp(-2))) / 2
    assert figures["loss"] == pytest.approx(expected + 2 * np.log(2), abs=1e-5)


def test_onsets_are_scored_by_f1() -> None:
    """One of 16 frames of each clip has an onset. A head that says so of both first frames is right once in two."""
    trained = task()
    with torch.no_grad():
        trained.module.onset_head.weight.zero_()
        trained.module.onset_head.bias.copy_(torch.tensor([9.0] + [-9.0] * 7))
        figures = trained.validate(trained.module)
    assert figures["onsets"] == pytest.approx(2 * 1 / (2 + 1))
