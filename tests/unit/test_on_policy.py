"""On-policy samples: their share and age, and that a resumed run reads the same ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.distill.objective import on_policy_share
from tests.distill_tasks import task_of, tiny_tokens
from tinymusician.artifacts.store import LocalStore
from tinymusician.data.shards import ShardCache
from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.on_policy import OnPolicySampler, SamplingOptions
from tinymusician.distill.signals import OnlineTeacher
from tinymusician.distill.task import DistillTask
from tinymusician.errors import RecipeError
from tinymusician.models.conditional_decoder import encode_text
from tinymusician.models.musicgen import load_musicgen
from tinymusician.models.prune_layers import prune_layers
from tinymusician.models.sampling import sample_codes
from tinymusician.recipe import OnPolicyConfig, load_recipe
from tinymusician.training.engine import AdamConfig
from tinymusician.training.torch_engine import TorchEngine

STEPS, ROWS = 8, 4


def build(
    folder: Path, store: LocalStore, on_policy: OnPolicyConfig, top_k: int = 16
) -> tuple[DistillTask, Any, TokenDataset]:
    """A task, its teacher's source, and the given sequences."""
    teacher = load_musicgen(str(folder))
    tokens = tiny_tokens(folder)

    def judge(other: TokenDataset) -> OnlineTeacher:
        return OnlineTeacher(teacher, other, "guided", 3.0, torch.float32)

    student = prune_layers(teacher, [0, 3])
    shards = ShardCache(store, "on-policy", {"run": "r"}, STEPS)
    samples = OnPolicySampler(
        student,
        tokens,
        judge,
        partial(on_policy_share, on_policy, STEPS),
        on_policy.refresh,
        STEPS,
        SamplingOptions(guidance=1.0, one_pass=True, top_k=top_k, temperature=1.0),
        0,
        shards,
    )
    return task_of(student, judge(tokens), steps=STEPS, batch=ROWS, on_policy=samples), judge, tokens


def test_on_policy_step_mixes_given_and_sampled_sequences(tiny_musicgen: Path, tmp_path: Path) -> None:
    """The first rows are those of the set; the last are what the student plays for their captions, as judged."""
    task, judge, tokens = build(tiny_musicgen, LocalStore(tmp_path), OnPolicyConfig(share=0.5, refresh=2), top_k=1)
    rows = task.rows(0, 0, 1)
    batch = task.batch(0, 0, 1)
    given = judge(tokens)(rows[:2])
    assert torch.equal(batch.sequences.inputs[:2], given.sequences.inputs)
    torch.testing.assert_close(batch.logits[:2], given.logits)
    ids, mask = torch.from_numpy(tokens.text_ids[rows[2:]]), torch.from_numpy(tokens.text_mask[rows[2:]])
    with torch.no_grad():
        likeliest = sample_codes(task.student, encode_text(task.student, ids, mask), 12, [0, 1], 1.0, 1, 1.0)
    played = TokenDataset(likeliest.numpy().astype(np.int16), ids.numpy(), mask.numpy())
    expected = judge(played)(np.arange(2))
    assert torch.equal(batch.sequences.inputs[2:], expected.sequences.inputs)
    torch.testing.assert_close(batch.logits[2:], expected.logits)


def test_on_policy_share_follows_its_schedule(tiny_musicgen: Path, tmp_path: Path) -> None:
    task, _, _ = build(
        tiny_musicgen, LocalStore(tmp_path), OnPolicyConfig(share=0.75, begin=0.25, ramp=0.375, refresh=3)
    )
    assert task.on_policy is not None
    assert [task.on_policy.count(step, ROWS) for step in range(STEPS)] == [0, 0, 1, 2, 2, 3, 3, 3]
    engine = TorchEngine(task.module, AdamConfig())
    shares = [task.loss(engine, task.batch(step, 0, 1), step)[1]["on_policy_share"].item() for step in range(STEPS)]
    assert shares == [0, 0, 0.25, 0.5, 0.5, 0.75, 0.75, 0.75]


def test_no_sample_is_older_than_its_refresh(tiny_musicgen: Path, tmp_path: Path) -> None:
    """A changed student is sampled at the next refresh, and not before."""
    task, _, _ = build(tiny_musicgen, LocalStore(tmp_path / "a"), OnPolicyConfig(share=1.0, refresh=4))
    before = [task.batch(step, 0, 1).sequences.inputs for step in range(2)]
    with torch.no_grad():  # from now on it plays nothing but code 5
        norm = task.student.decoder.model.decoder.layer_norm
        norm.weight.zero_()
        norm.bias.fill_(1)
        for head in task.student.decoder.lm_heads:
            head.weight.zero_()
            head.weight[5] = 10
    late = [task.batch(step, 0, 1).sequences for step in (2, 4)]
    other, _, _ = build(tiny_musicgen, LocalStore(tmp_path / "b"), OnPolicyConfig(share=1.0, refresh=4))
    assert torch.equal(late[0].inputs, [other.batch(step, 0, 1).sequences.inputs for step in range(3)][2])
    assert not torch.equal(before[0], before[1])
    assert late[1].inputs[:, :, 1:][late[1].mask[:, :, :-1]].unique().tolist() == [5]


def test_resumed_run_reads_the_same_samples(tiny_musicgen: Path, tmp_path: Path) -> None:
    """Also in the middle of a refresh, when the student that played them is no more."""
    store, on_policy = LocalStore(tmp_path), OnPolicyConfig(share=0.5, refresh=4)
    task, _, _ = build(tiny_musicgen, store, on_policy)
    inputs = [task.batch(step, 0, 1).sequences.inputs for step in range(4)]
    resumed, _, _ = build(tiny_musicgen, store, on_policy)
    with torch.no_grad():
        resumed.student.decoder.lm_heads[0].weight.mul_(3)
    assert torch.equal(resumed.batch(3, 0, 1).sequences.inputs, inputs[3])


def test_sampling_does_not_change_the_student(tiny_musicgen: Path, tmp_path: Path) -> None:
    """Its decoder trains on, with dropout; its frozen text encoder never does."""
    task, _, _ = build(tiny_musicgen, LocalStore(tmp_path), OnPolicyConfig(share=0.5, refresh=4))
    task.module.train()
    task.batch(0, 0, 1)
    assert task.student.decoder.training
    assert not task.student.text_encoder.training
    assert not task.student.audio_encoder.training


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("on_policy.share=0.5", "signals.source=cached"), "shards have no signals of new sequences"),
        (("on_policy.share=0.5", "objective.hard=0.1"), "the student's own samples are no labels"),
        (("on_policy.share=0.5", "training.zero_stage=3"), "allowed are training.zero_stage 0 to 2"),
        (("on_policy.share=0.01",), r"on_policy\.share = 0\.01: is less than one of training\.batch_size = 4"),
    ],
)
def test_impossible_configurations(sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("band", sets)
