"""Smaller text encoders and codecs: initialization from the teacher, training, assembly of the student."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import EncodecModel, T5EncoderModel

from benchmarks.shapes import musicgen
from jobs.distill.components import load_joint_weights, parameter_counts
from jobs.launch.estimate import distill_cost
from tests.distill_tasks import task_of, tiny_tokens
from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.balance import Method, balance
from tinymusician.distill.codec_distill import (
    CodecDistillTask,
    ProjectedCodec,
    decode_latents,
    expected_latents,
    latents_of,
    sound_closeness,
)
from tinymusician.distill.guidance_scales import GuidanceSampler
from tinymusician.distill.joint import JointTask
from tinymusician.distill.least_squares import fit
from tinymusician.distill.signals import OnlineTeacher
from tinymusician.distill.text_distill import TextEncoderDistillTask, fit_text, state_error
from tinymusician.errors import RecipeError
from tinymusician.models.component_shapes import component_shapes
from tinymusician.models.conditional_decoder import ConditionedDecoder, encode_text
from tinymusician.models.guidance import add_guidance_conditioning
from tinymusician.models.musicgen import load_musicgen
from tinymusician.models.prune_layers import prune_layers
from tinymusician.models.prune_width import prune_width
from tinymusician.models.prune_width_codec import prune_codec, with_reconstructions
from tinymusician.models.prune_width_text import ProjectedTextEncoder, prune_text_encoder, with_text
from tinymusician.models.sampling import decode_audio
from tinymusician.models.tensor_shapes import CodecShape, TextShape
from tinymusician.recipe import load_recipe
from tinymusician.training.engine import AdamConfig
from tinymusician.training.torch_engine import TorchEngine

FRAMES = 80
"""At the tiny codec's 16 samples a frame: enough for the shortest windows of the spectral distance."""


@pytest.fixture
def teacher(tiny_musicgen: Path) -> Any:
    return load_musicgen(str(tiny_musicgen))


@pytest.fixture
def tokens(tiny_musicgen: Path) -> TokenDataset:
    return tiny_tokens(tiny_musicgen, frames=FRAMES)


def text_of(tokens: TokenDataset) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(tokens.text_ids), torch.from_numpy(tokens.text_mask)


def trained(task: Any, steps: int, rate: float) -> tuple[dict[str, float], dict[str, float]]:
    """Held-out figures before and after."""
    engine = TorchEngine(task.module, AdamConfig())
    before = task.validate(engine)
    for step in range(steps):
        loss, _ = task.loss(engine, task.batch(step, 0, 1), step)
        engine.step(loss, rate)
    task.module.eval()
    return before, task.validate(engine)


class TestText:
    def test_identity_pruning_is_the_teacher(self, teacher: Any, tokens: TokenDataset) -> None:
        text = prune_text_encoder(teacher.text_encoder, [0], 16, 2, 32)
        torch.testing.assert_close(text(*text_of(tokens)), encode_text(teacher, *text_of(tokens)).states)

    def test_silent_lines_need_no_coverage(self, teacher: Any, tokens: TokenDataset) -> None:
        """A head and neurons that give nothing on are those that go."""
        attention, feed_forward = teacher.text_encoder.encoder.block[0].layer
        with torch.no_grad():
            attention.SelfAttention.o.weight[:, :8] = 0
            feed_forward.DenseReluDense.wo.weight[:, ::4] = 0
        text = prune_text_encoder(teacher.text_encoder, [0], 16, 1, 24)
        assert text.encoder.config.num_heads == 1
        torch.testing.assert_close(text(*text_of(tokens)), encode_text(teacher, *text_of(tokens)).states)

    def test_student_uses_the_distilled_text_encoder(self, teacher: Any, tokens: TokenDataset, tmp_path: Path) -> None:
        """Map and projection are one: transformers' own model gives what the teacher gives for mapped states."""
        text = prune_text_encoder(teacher.text_encoder, [0], 8, 2, 16)
        with torch.no_grad():
            text.to_teacher.bias.normal_()
        ids, mask = text_of(tokens)
        inputs = torch.from_numpy(np.random.default_rng(0).integers(0, 16, (8, 4, 9)))
        with torch.no_grad():
            expected = ConditionedDecoder(teacher)(inputs, text(ids, mask), mask)
            with_text(teacher, text).save_pretrained(tmp_path)
            student = load_musicgen(str(tmp_path))
            actual = student(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs.flatten(0, 1)).logits
        torch.testing.assert_close(actual.view(expected.shape), expected, rtol=1e-4, atol=1e-5)

    def test_one_as_wide_as_the_decoder(self, teacher: Any) -> None:
        student = prune_width(teacher, [0], 8, 1, 16)
        with pytest.raises(RecipeError, match=r"text_encoder\.width = 8: is that of the student's decoder"):
            with_text(student, prune_text_encoder(teacher.text_encoder, [0], 8, 2, 16))

    def test_it_learns(self, teacher: Any, tokens: TokenDataset) -> None:
        torch.manual_seed(0)
        text = prune_text_encoder(teacher.text_encoder, [0], 8, 2, 16)
        cut = state_error(text(*text_of(tokens)), encode_text(teacher, *text_of(tokens)).states, text_of(tokens)[1])
        fit_text(text, teacher, *text_of(tokens))
        before, after = trained(
            TextEncoderDistillTask(text, teacher, tokens, tokens, "uncertainty", 8, 0, "cpu"), 60, 3e-3
        )
        assert before["states"] < cut.item()
        assert after["states"] < 0.7 * before["states"]
        assert after["kl"] < 0.5 * before["kl"]

    def test_states_agree_with_float64(self) -> None:
        rng = np.random.default_rng(0)
        actual, expected, mask = (
            rng.normal(size=(2, 3, 4)),
            rng.normal(size=(2, 3, 4)),
            np.array([[1, 1, 0], [1, 0, 0]]),
        )
        error = state_error(*(torch.from_numpy(each) for each in (actual, expected, mask)))
        difference, size = ((actual - expected) ** 2)[mask > 0].sum(), (expected**2)[mask > 0].sum()
        assert error.item() == pytest.approx(difference / size, rel=1e-5)


class TestCodec:
    def test_identity_pruning_is_the_teacher(self, teacher: Any, tokens: TokenDataset) -> None:
        codec = prune_codec(teacher.audio_encoder, 4, 1)
        result = sound_closeness(codec, teacher.audio_encoder, torch.from_numpy(tokens.codes.astype(np.int64)))
        assert result["spectral"] < 1e-4
        assert result["same_codes"] == 1

    @torch.no_grad()
    def test_silent_lines_need_no_coverage(self, teacher: Any, tokens: TokenDataset) -> None:
        """Every other channel of every layer but the last says nothing: those are the ones that go."""
        old = teacher.audio_encoder
        for half in (old.encoder, old.decoder):
            modules = list(half.modules())
            *inner, _ = [module for module in modules if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d))]
            for conv in inner:
                weight = conv.weight.clone()
                (weight if isinstance(conv, nn.Conv1d) else weight.transpose(0, 1))[1::2] *= 1e-12
                conv.weight = weight
                conv.bias[1::2] = 0
            for weight in (
                weight for module in modules if isinstance(module, nn.LSTM) for weight in module.parameters()
            ):
                weight[1::2] = 0
        new, latent = prune_codec(old, 2, 1), latents_of(old, torch.from_numpy(tokens.codes.astype(np.int64)))
        wave = decode_latents(old, latent).wave
        torch.testing.assert_close(decode_latents(new, latent).wave, wave)
        torch.testing.assert_close(new.encoder(wave[:, None]), old.encoder(wave[:, None]))

    def test_fewer_residual_blocks(self, teacher: Any) -> None:
        """Without them the rest is as it was."""
        config = copy.deepcopy(teacher.config.audio_encoder)
        config.num_residual_layers = 2
        deep = EncodecModel(config).eval()
        same = prune_codec(prune_codec(deep, 4, 1), 4, 0)
        latent = torch.randn(2, 8, 20)
        torch.testing.assert_close(
            decode_latents(same, latent).wave, decode_latents(prune_codec(deep, 4, 0), latent).wave
        )
        for layer in (layer for layer in deep.decoder.layers if hasattr(layer, "block")):
            layer.forward = lambda values: values
        torch.testing.assert_close(decode_latents(same, latent).wave, decode_latents(deep, latent).wave)

    def test_student_uses_the_distilled_codec(self, teacher: Any, tmp_path: Path) -> None:
        codec = prune_codec(teacher.audio_encoder, 2, 1)
        with_reconstructions(teacher, codec).save_pretrained(tmp_path)
        student, codes = load_musicgen(str(tmp_path)), torch.randint(0, 16, (2, 4, 20))
        expected = codec.decode(codes[None], [None]).audio_values[:, 0]
        torch.testing.assert_close(torch.stack(list(decode_audio(student, codes))), expected)

    def test_it_learns(self, teacher: Any, tokens: TokenDataset) -> None:
        torch.manual_seed(0)
        codec = ProjectedCodec(prune_codec(teacher.audio_encoder, 2, 1), teacher.audio_encoder)
        codec.fit(teacher.audio_encoder, torch.from_numpy(tokens.codes.astype(np.int64)))
        before, after = trained(
            CodecDistillTask(codec, teacher.audio_encoder, tokens, tokens, FRAMES, "rates", 8, 0, "cpu"), 60, 3e-3
        )
        assert after["spectral"] < 0.8 * before["spectral"]
        assert after["si_sdr"] > before["si_sdr"] + 1

    def test_zero_loss_gets_no_larger_weight(self, teacher: Any, tokens: TokenDataset) -> None:
        codec = ProjectedCodec(prune_codec(teacher.audio_encoder, 4, 1), teacher.audio_encoder)
        codec.fit(teacher.audio_encoder, torch.from_numpy(tokens.codes.astype(np.int64)))
        task = CodecDistillTask(codec, teacher.audio_encoder, tokens, tokens, FRAMES, "uncertainty", 8, 0, "cpu")
        assert task.before["latents"] == task.before["waveform"] == 1e-4
        _, after = trained(task, 3, 1e-4)
        assert after["spectral"] < 0.1

    def test_larger_bundle_fails_the_size_gate(self, teacher: Any) -> None:
        with pytest.raises(RecipeError, match=r"codec\.filters = 8: at most the teacher's 4"):
            prune_codec(teacher.audio_encoder, 8, 1)

    def test_certain_codes_are_expected(self, teacher: Any) -> None:
        codes = torch.randint(0, 16, (2, 4, 5))
        logits = 100.0 * nn.functional.one_hot(codes, 16)
        result = expected_latents(teacher.audio_encoder, logits)
        torch.testing.assert_close(result, latents_of(teacher.audio_encoder, codes))


@pytest.mark.parametrize("scales", [None, GuidanceSampler(1.0, 5.0)], ids=["", "guidance-conditioned"])
def test_joint_training_updates_all_components(
    teacher: Any, tokens: TokenDataset, scales: GuidanceSampler | None
) -> None:
    """All losses fall, the audio loss reaches the text encoder, and the published student is the validated one."""
    torch.manual_seed(0)
    text = prune_text_encoder(teacher.text_encoder, [0], 8, 2, 16)
    fit_text(text, teacher, *text_of(tokens))
    codec = ProjectedCodec(prune_codec(teacher.audio_encoder, 2, 1), teacher.audio_encoder)
    student = with_reconstructions(with_text(prune_layers(teacher, [0, 3]), text), codec.codec)
    student = add_guidance_conditioning(student, scales.low, scales.high) if scales else student
    copy_before = copy.deepcopy(student)
    text, codec.codec = ProjectedTextEncoder(student.text_encoder, text.to_teacher), student.audio_encoder
    source = OnlineTeacher(teacher, tokens, "conditional", 3.0, torch.float32)
    sound = CodecDistillTask(codec, teacher.audio_encoder, tokens, tokens, FRAMES, "equal", 8, 0, "cpu")
    task = JointTask(task_of(student, source, scales=scales), text, sound, teacher.text_encoder, "uncertainty", "cpu")
    batch = task.batch(0, 0, 1)
    targets = task.targets(batch)
    answer, _ = task.module(*task.inputs(batch, targets))
    audio_loss = task.losses(answer, batch, targets)["audio"]
    (gradient,) = torch.autograd.grad(audio_loss, student.text_encoder.shared.weight)
    assert gradient.abs().max() > 0
    before, after = trained(task, 40, 3e-3)
    assert before["whole"] == 1
    assert after["kl"] < 0.5 * before["kl"]
    assert after["spectral"] < before["spectral"]
    assert after["whole"] == pytest.approx(
        (after["kl"] / before["kl"] + after["spectral"] / before["spectral"]) / 2, rel=1e-5
    )
    load_joint_weights(
        copy_before, {name.removeprefix("part."): value for name, value in task.module.state_dict().items()}
    )
    assert all(torch.equal(copy_before.state_dict()[name], value) for name, value in student.state_dict().items())


class TestBalance:
    def total(self, method: Method, log_variances: torch.Tensor | None = None) -> Any:
        losses = {"one": torch.tensor(3.0), "other": torch.tensor(0.02)}
        return balance(method, losses, {"one": 2.0, "other": 0.1}, log_variances)

    def test_uncertainty_is_least_where_variances_are_the_losses(self) -> None:
        """Σ ½·r/σ² + ½·log σ² is least at σ² = r, where it is Σ ½ + ½·log r."""
        shares = np.array([1.5, 0.2])
        best = torch.tensor(np.log(shares), requires_grad=True)
        value, weights = self.total("uncertainty", best)
        assert value.item() == pytest.approx((0.5 + 0.5 * np.log(shares)).sum())
        assert torch.autograd.grad(value, best)[0].abs().max() < 1e-6
        assert weights["other"].item() == pytest.approx(0.5 / 0.2)

    def test_rates_weight_the_slowest_loss_most(self) -> None:
        shares = np.array([1.5, 0.2])
        expected = 2 * np.exp(shares / 2) / np.exp(shares / 2).sum()
        value, weights = self.total("rates")
        assert [weight.item() for weight in weights.values()] == pytest.approx(expected.tolist())
        assert value.item() == pytest.approx((expected * shares).sum())

    def test_equal(self) -> None:
        assert self.total("equal")[0].item() == pytest.approx(1.7)


def test_projection_is_initialized_with_least_squares() -> None:
    rng = np.random.default_rng(0)
    states, expected = rng.normal(size=(400, 5)) * 3 + 1, rng.normal(size=(400, 3))
    expected += states @ rng.normal(size=(5, 3)) + 2
    map_ = nn.Linear(5, 3)
    fit(map_, torch.from_numpy(states), torch.from_numpy(expected))
    solution, *_ = np.linalg.lstsq(np.c_[states, np.ones(400)], expected, rcond=None)
    np.testing.assert_allclose(map_.weight.detach(), solution[:-1].T, atol=2e-2)
    np.testing.assert_allclose(map_.bias.detach(), solution[-1], atol=5e-2)


class TestBudget:
    def test_shapes_are_counted_as_transformers_does(self) -> None:
        with torch.device("meta"):
            small = musicgen("small")
        text, codec = TextShape(), CodecShape()
        assert text.parameters == sum(
            weight.numel() for weight in T5EncoderModel(small.config.text_encoder).parameters()
        )
        assert codec.decoder_parameters == parameter_counts(small)["codec_decoder"]
        result = component_shapes("band-large")
        assert result is not None
        band = parameter_counts(load_musicgen("band-large"))
        assert (result[0].parameters, result[1].decoder_parameters) == (band["text_encoder"], band["codec_decoder"])

    def test_tinyttm_keeps_its_budget(self) -> None:
        """89.2 M within 2 %, from 557.6 M: what `--dry-run` says of the packaged recipe, a part a line."""
        figures = distill_cost(load_recipe("tinyttm"), 1)
        assert figures["teacher_parameters"] == pytest.approx(557.6e6, rel=0.01)
        parts = ("text_encoder", "decoder", "projection", "codec_decoder")
        assert sum(figures[f"student_{part}_parameters"] for part in parts) == figures["student_parameters"]
        assert figures["student_parameters"] == pytest.approx(89.2e6, rel=0.02)

    @pytest.mark.slow
    def test_built_student_has_the_estimated_parameters(self) -> None:
        from jobs.distill.models import new_student

        recipe = load_recipe("tinyttm")
        student = new_student(recipe, musicgen("small"))
        assert parameter_counts(student)["whole"] == distill_cost(recipe, 1)["student_parameters"]
