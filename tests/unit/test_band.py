"""The house band's parts: corpus on the frame grid, captions, codec initialization, quantizer, training tasks."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinymusician.house_band.attributes import INSTRUMENTS, TEMPI, ClipAttributes, aspects, caption, sentence
from tinymusician.house_band.corpus import load_split
from tinymusician.house_band.dedup import families
from tinymusician.house_band.synth import HIGHEST, HOP, LOWEST, Note, SoundfontSynth, notes_on_grid, sample_attributes
from tinymusician.house_band.train_lm import cross_entropy_per_codebook, unigram_entropy
from tinymusician.house_band.tunes import Tune, assign_splits, plain_title
from tinymusician.models.codec import codec_config, mdct_basis, new_codec, start_from_closed_form
from tinymusician.models.quantizer import QuantizerTrainer, k_means
from tinymusician.models.spectral import mel_filters, si_sdr

SCALE = tuple((i * 0.5, 0.5, 60 + step) for i, step in enumerate((0, 2, 4, 5, 7, 9, 11, 12) * 4))
TUNE = Tune("The Example", "ryan", "reel", 0, "major", "4/4", SCALE)


@pytest.fixture(scope="module")
def band() -> SoundfontSynth:
    return SoundfontSynth()


def test_variants_of_a_tune_share_a_split() -> None:
    """Whatever their titles: a tune in a higher key and with another beginning goes where its other setting goes."""
    assert plain_title("The Cliffs of Moher") == plain_title("Cliffs of Moher -- Jig") == "cliffs of moher"
    rng = np.random.default_rng(0)
    tunes = []
    for number in range(600):
        melody = rng.integers(60, 80, 40)
        name = f"{chr(97 + number // 26)}{chr(97 + number % 26)}"
        tunes.append(tune_of(f"tune {name}", melody))
        tunes.append(tune_of(f"other {name}", [70, 62, *(melody[5:] + 3)]))
    splits = [tune.split for tune in assign_splits(tunes)]
    assert splits[::2] == splits[1::2]
    assert 0.02 < splits.count("validation") / 1200 < 0.09
    assert 0.02 < splits.count("test") / 1200 < 0.09


def test_families_are_transitive() -> None:
    """Two tunes that share nothing are one family if a third is a setting of both; a trill joins no tunes."""
    one, other = [60, 62, 65, 61, 70] * 4, [50, 57, 53, 58, 51] * 4
    trill = [60, 62] * 12
    melodies = [one, other, one + other, trill, [5 + pitch for pitch in trill]]
    assert families(["a", "b", "c", "d", "e"], melodies) == [0, 0, 0, 3, 4]
    assert families(["a", "b", "a"], [one, other, trill]) == [0, 1, 0]


def test_clips_of_settings_of_one_tune_have_one_family(tmp_path: Path) -> None:
    melody = np.random.default_rng(0).integers(60, 80, 40)
    tunes = [tune_of("One", melody), tune_of("Its Other Name", melody + 2), tune_of("Two", melody[::-1])]
    clips = load_split(tmp_path, tunes, "train", 12, 0).clips
    assert {(clip.facts.title, clip.family) for clip in clips} == {
        ("One", "one"),
        ("Its Other Name", "one"),
        ("Two", "two"),
    }
    assert load_split(tmp_path, tunes, "train", 12, 0).clips == clips, "read from the disk"


def tune_of(title: str, melody: Any) -> Tune:
    notes = tuple((i * 0.5, 0.5, int(pitch)) for i, pitch in enumerate(melody))
    return Tune(title, "ryan", "reel", 0, "major", "4/4", notes)


@pytest.mark.parametrize("tempo", TEMPI)
def test_notes_begin_on_codec_frames(tempo: str) -> None:
    facts = ClipAttributes("x", 1.0, "fiddle", tempo, "reel", 0, "major")
    notes = notes_on_grid(TUNE, facts, 0, 250)
    assert [note.on for note in notes[:3]] == [0, TEMPI[tempo] // 2, TEMPI[tempo]]
    assert all(note.off == note.on + TEMPI[tempo] // 2 - 1 for note in notes)
    assert [note.pitch for note in notes[:3]] == [64, 65, 67], "the tune from its second quarter on"


def test_pitches_stay_in_range() -> None:
    for _ in range(50):
        tune, facts, shift = sample_attributes([TUNE], random.Random(_))
        assert all(LOWEST <= note.pitch <= HIGHEST for note in notes_on_grid(tune, facts, shift, 250))
        assert facts.tonic == shift % 12


def test_equal_notes_sound_equal(band: SoundfontSynth) -> None:
    """What makes the corpus learnable: a note gives the same samples wherever on the grid it stands."""
    for instrument in INSTRUMENTS:
        early = band.render([Note(3, 12, 69)], instrument, 40)
        late = band.render([Note(17, 26, 69)], instrument, 40)
        assert np.array_equal(early[3 * HOP : 25 * HOP], late[17 * HOP : 39 * HOP])
        assert np.abs(early[: 3 * HOP]).max() < 1e-4
        assert 0.02 < np.sqrt(np.mean(early[3 * HOP : 12 * HOP] ** 2)) < 0.5


def test_captions_match_the_attributes() -> None:
    facts = ClipAttributes("x", 0.0, "church organ", "slow", "waltz", 2, "minor")
    for seed in range(40):
        rng = random.Random(seed)
        listed = aspects(facts, rng)
        assert listed[1:4] == ["solo church organ", "waltz", "D minor"]
        assert "slow" in listed[0]
        for text in (sentence(facts, rng), caption(facts, rng)):
            assert "church organ" in text
            assert "slow" in text
            assert "waltz" in text
            assert "major" not in text


def test_the_mdct_is_orthonormal_with_overlap() -> None:
    """Princen and Bradley's condition: the transform and its transpose reconstruct a signal exactly."""
    basis = mdct_basis(8).double()
    torch.testing.assert_close(basis @ basis.T, torch.eye(8, dtype=torch.float64), atol=1e-5, rtol=0)
    signal = torch.randn(1, 1, 64, dtype=torch.float64)
    coefficients = torch.nn.functional.conv1d(signal, basis[:, None], stride=8)
    back = torch.nn.functional.conv_transpose1d(coefficients, basis[:, None], stride=8)
    torch.testing.assert_close(back[..., 8:-8], signal[..., 8:-8], atol=1e-5, rtol=0)


def test_closed_form_codec_reconstructs_untrained(band: SoundfontSynth) -> None:
    """Encoder and decoder without quantizer reconstruct the band from the start; random weights do not."""
    notes = [Note(i * 8, i * 8 + 7, 60 + 2 * i) for i in range(8)]
    audio = torch.from_numpy(np.stack([band.render(notes, name, 64) for name in INSTRUMENTS]))
    torch.manual_seed(0)
    codec = new_codec(codec_config(codebook_size=16))

    def distortion() -> float:
        with torch.no_grad():
            made = codec.decoder(codec.encoder(audio[:, None]))[:, 0, : audio.shape[1]]
        return float(si_sdr(made, audio).mean())

    assert distortion() < -5
    start_from_closed_form(codec, audio)
    assert distortion() > 8


def test_si_sdr_is_scale_invariant_and_exact() -> None:
    torch.manual_seed(0)
    true = torch.randn(3, 4000)
    noise = torch.randn(3, 4000)
    noise = noise - noise.mean(-1, keepdim=True)
    centred = true - true.mean(-1, keepdim=True)
    noise = noise - (noise * centred).sum(-1, keepdim=True) / centred.square().sum(-1, keepdim=True) * centred
    noise = noise * (centred.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)) / 10
    torch.testing.assert_close(si_sdr(0.3 * (true + noise), true), torch.full((3,), 20.0), atol=1e-3, rtol=0)


def test_mel_filters_are_triangles() -> None:
    filters = mel_filters(16_000, 1024, 64)
    assert filters.shape == (64, 513)
    assert (filters >= 0).all()
    assert (filters <= 1).all()
    assert (filters.sum(1) > 0).all()
    peaks = filters.argmax(1)
    assert (peaks[1:] >= peaks[:-1]).all()


def test_k_means_finds_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = centres.repeat(50, 1) + 0.1 * torch.randn(150, 2, generator=generator)
    result, sizes = k_means(points, 3, generator, 20)
    assert sizes.sum() == 150
    assert torch.cdist(centres, result).min(1).values.max() < 0.2


def quantizer() -> tuple[QuantizerTrainer, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    trainer = QuantizerTrainer(new_codec(codec_config(codebook_size=16, latent=4, filters=2)).quantizer)
    trainer.start(torch.randn(2000, 4, generator=generator), generator)
    return trainer, generator


def test_each_codebook_reduces_the_quantizer_error() -> None:
    trainer, generator = quantizer()
    latent = torch.randn(2, 4, 300, generator=generator)
    errors = [
        (trainer.eval()(latent, torch.full((2,), depth), None).latent - latent).square().mean().item()
        for depth in range(1, 5)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.2 * errors[0]
    with torch.no_grad():
        theirs = trainer.quantizer.decode(trainer.quantizer.encode(latent, bandwidth=0.8))
    torch.testing.assert_close(trainer(latent, torch.full((2,), 4), None).latent, theirs)


def test_moving_averages_follow_the_data_and_revive_dead_codes() -> None:
    trainer, generator = quantizer()
    book = trainer.quantizer.layers[0].codebook
    with torch.no_grad():
        book.embed[0] = book.embed_avg[0] = 1000.0
    trainer.decay = 0.8
    for _ in range(40):
        trainer.train()(torch.randn(4, 4, 200, generator=generator) + 3, torch.full((4,), 4), generator)
    used = trainer(torch.randn(4, 4, 400, generator=generator) + 3, torch.full((4,), 4), None).codes[:, 0].unique()
    assert len(used) == 16
    assert book.embed.mean().item() == pytest.approx(3, abs=0.3)


def revive_on_worker(rank: int, folder: str) -> None:
    """One training step of a worker whose first code is dead; only worker 1 has latents."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    trainer, generator = quantizer()
    book = trainer.quantizer.layers[0].codebook
    with torch.no_grad():
        book.embed[0] = book.embed_avg[0] = 1000.0
        book.cluster_size[0] = 0
    latent = torch.randn(1, 4, 200, generator=torch.Generator().manual_seed(rank)) + 10 * rank
    trainer.train()(latent, torch.tensor([4 * rank]), generator)
    torch.save((book.embed, latent), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_workers_revive_the_same_codes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=revive_on_worker, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    (first, _), (second, latent) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    assert (second[0] == latent[0].T).all(1).any(), "a dead code becomes a latent of the worker that has some"


def test_gradients_pass_straight_through() -> None:
    trainer, _ = quantizer()
    latent = torch.randn(1, 4, 5, requires_grad=True)
    trainer.eval()(latent, torch.tensor([4]), None).latent.sum().backward()
    assert latent.grad is not None
    torch.testing.assert_close(latent.grad, torch.ones_like(latent))


def test_cross_entropy_counts_the_delay_pattern_only() -> None:
    logits = torch.randn(2, 4, 9, 16, dtype=torch.float64)
    targets = torch.randint(0, 16, (2, 4, 9))
    actual = cross_entropy_per_codebook(logits, targets)
    log = torch.log_softmax(logits.float(), -1).numpy()
    for k in range(4):
        expected = [-log[b, k, s, targets[b, k, s]] for b in range(2) for s in range(k, k + 6)]
        assert actual[k].item() == pytest.approx(float(np.mean(expected)), rel=1e-5)


def test_unigram_entropy() -> None:
    even = np.tile(np.arange(8), (1, 1, 4))
    assert unigram_entropy(even, 8) == pytest.approx([np.log(8)])
    assert unigram_entropy(np.zeros((2, 3, 5), int), 8) == pytest.approx([0, 0, 0])


def test_language_model_learns_a_small_corpus(tiny_musicgen: Path) -> None:
    """Repeating codes that the caption decides: after a few steps the right caption is better than a wrong one."""
    from tests.tiny import CAPTIONS
    from tinymusician.data.tokens import TokenDataset, tokenize_captions
    from tinymusician.house_band.train_lm import LanguageModelTask
    from tinymusician.models.musicgen import load_musicgen, load_tokenizer
    from tinymusician.training.engine import AdamConfig
    from tinymusician.training.torch_engine import TorchEngine

    codes = np.stack([np.full((4, 8), 3 * (i % 4)) for i in range(16)]).astype(np.int16)
    tokens = TokenDataset(
        codes, *tokenize_captions(load_tokenizer(str(tiny_musicgen)), [CAPTIONS[i % 4] for i in range(16)])
    )
    model: Any = load_musicgen(str(tiny_musicgen))
    task = LanguageModelTask(model, tokens, tokens, 16, 0)
    engine = TorchEngine(task.module.train(), AdamConfig())
    for step in range(60):
        loss, _ = task.loss(engine, task.batch(step, 0, 1), step)
        engine.step(loss, 1e-2)
    figures = task.validate(engine)
    assert figures["cross_entropy/right"] < 0.2
    assert figures["cross_entropy/right"] < figures["cross_entropy/none"] < figures["cross_entropy/wrong"]
