"""Measures the house band: codec, language models, control by captions, notes. Plots go to docs/house-band/.

    python benchmarks/house_band.py [--corpus FOLDER] [--clips 96] [--side 32]

All figures are on tunes that no training saw (test split; the steering prompts are of no split). Intervals are 95 %
bootstrap intervals over clips; p-values are one-sided Mann-Whitney tests, in the direction of the real clips.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tinymusician.models.protocols import Codec, Musicgen, Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from platformdirs import user_cache_path
from scipy.stats import mannwhitneyu

from benchmarks.report import report
from tinymusician.data.tokens import TokenDataset
from tinymusician.house_band.attributes import FRAME_RATE, INSTRUMENTS, TEMPI
from tinymusician.house_band.audio_features import (
    Wave,
    band_shape,
    chroma_correlation,
    in_tune,
    on_beat,
    onset_f_measure,
    onset_times,
    pitch_track,
    scale_consistency,
    spectral_centroid,
    spectrogram,
)
from tinymusician.house_band.corpus import RenderedSplit
from tinymusician.house_band.model import GUIDANCE, TEMPERATURE, TOP_K
from tinymusician.house_band.pretrain import encode_split, load_corpus
from tinymusician.house_band.train_codec import codec_quality
from tinymusician.house_band.train_lm import LanguageModelTask, unigram_entropy
from tinymusician.house_band.tunes import KINDS
from tinymusician.models.conditional_decoder import encode_text
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.models.sampling import decode_audio, sample_codes
from tinymusician.plots import png, pyplot

RATE = 16_000
BEAT = 0.02
"""Tolerance in seconds within which a gap between onsets is called a whole number of eighths."""

LANGUAGE_CURVES = {
    "training (nats per code)": "loss",
    "held out, right caption": "held_out/cross_entropy/right",
    "held out, no caption": "held_out/cross_entropy/none",
    "held out, wrong caption": "held_out/cross_entropy/wrong",
}
DOCS = Path(__file__).parents[1] / "docs" / "house-band"
"""Holds the metrics of each part's training; the pictures made here go beside them."""


def mean_with_interval(values: list[float]) -> list[float]:
    """The mean and its 95 % bootstrap interval over 2,000 resamples."""
    array = np.asarray(values)
    means = np.random.default_rng(0).choice(array, (2000, len(array))).mean(axis=1)
    return [float(array.mean()), *np.quantile(means, [0.025, 0.975]).tolist()]


def played(codec: Codec, codes: torch.Tensor) -> Wave:
    """The codec's wave for codes [B, K, T], in pieces."""
    with torch.no_grad():
        parts = [codec.decode(part[None], [None]).audio_values[:, 0] for part in codes.split(32)]
    return torch.cat(parts).numpy()


def codec_figures(codec: Codec, split: RenderedSplit, tokens: TokenDataset) -> tuple[dict[str, float], Wave]:
    """Reconstruction against the original: the training's own figures, chroma, and onsets against the score."""
    audio = split.audio(slice(None))
    figures = {f"codec/{name}": value for name, value in codec_quality(codec, torch.from_numpy(audio)).items()}
    made = played(codec, torch.from_numpy(tokens.codes.astype(np.int64)))
    scores = [np.unique(np.array([note.on for note in clip.notes])) / FRAME_RATE for clip in split.clips]
    figures |= spread("codec/chroma", [chroma_correlation(m, a, RATE) for m, a in zip(made, audio, strict=True)])
    for name, waves in (("reconstruction", made), ("original", audio)):
        measures = [onset_f_measure(onset_times(w, RATE), s) for w, s in zip(waves, scores, strict=True)]
        figures |= spread(f"codec/onset_f/{name}", measures)
    return figures, made


def spread(name: str, values: list[float]) -> dict[str, float]:
    """A figure with its interval as three entries."""
    return dict(zip((name, f"{name}/low", f"{name}/high"), mean_with_interval(values), strict=True))


def language_figures(model: Musicgen, name: str, tokens: TokenDataset) -> dict[str, float]:
    """Cross-entropy with the right, no and a wrong caption, and how far the right one is below the unigram entropy."""
    entropy = float(np.mean(unigram_entropy(tokens.codes, model.config.decoder.vocab_size)))
    task = LanguageModelTask(model, tokens, tokens, 1, 0, held_out_rows=len(tokens.codes))
    task.module.eval()
    with torch.no_grad():
        result = task.validate(task.module)
    figures = {f"{name}/{key}": value for key, value in result.items()}
    return figures | {"unigram_entropy": entropy, f"{name}/below_unigram": 1 - result["cross_entropy/right"] / entropy}


def prompts(side: int) -> list[tuple[str, str, str]]:
    """(text, instrument, tempo): `side` prompts for each instrument, half slow and half fast."""
    chosen = []
    for instrument in INSTRUMENTS:
        for index in range(side):
            tempo = ("slow", "fast")[index % 2]
            kind = KINDS[(index // 2) % len(KINDS)]
            chosen.append((f"a {tempo} {instrument} {kind}", instrument, tempo))
    return chosen


def generate(model: Musicgen, tokenizer: Tokenizer, texts: list[str], frames: int) -> Wave:
    """Sampled clips, as the band is asked to play."""
    waves = []
    for start in range(0, len(texts), 48):
        text = tokenizer(texts[start : start + 48], padding=True, return_tensors="pt")
        with torch.no_grad():
            condition = encode_text(model, text["input_ids"], text["attention_mask"])
            seeds = range(start, start + len(condition.states))
            codes = sample_codes(model, condition, frames, seeds, GUIDANCE, TOP_K, TEMPERATURE)
        waves.append(decode_audio(model, codes).numpy())
        print(f"generated {min(start + 48, len(texts))} of {len(texts)} clips", flush=True)
    return np.concatenate(waves)


def steering_figures(
    requested: list[tuple[str, str, str]], made: Wave, real: Wave, split: RenderedSplit
) -> dict[str, float]:
    """Do prompts steer the instrument? Spectral centroids and timbres, beside those of the real clips."""
    names = list(INSTRUMENTS)
    figures = {}
    centroids = np.array([spectral_centroid(wave, RATE) for wave in made])
    real_centroids = np.array([spectral_centroid(wave, RATE) for wave in real])
    instrument, real_instrument = (
        np.array([w[1] for w in requested]),
        np.array([c.facts.instrument for c in split.clips]),
    )
    means = {name: float(real_centroids[real_instrument == name].mean()) for name in names}
    for name in names:
        figures[f"centroid_hz/{name}"] = float(centroids[instrument == name].mean())
        figures[f"centroid_hz/real/{name}"] = means[name]
    order = sorted(names, key=lambda name: means[name])
    tests = [
        mannwhitneyu(centroids[instrument == bright], centroids[instrument == dark], alternative="greater").pvalue
        for position, dark in enumerate(order)
        for bright in order[position + 1 :]
        if means[bright] > 1.1 * means[dark]
    ]
    figures["centroid_pairs_tested"] = len(tests)
    figures["centroid_pairs_p_below_0.01"] = sum(p < 0.01 for p in tests)
    shapes, real_shapes = (np.stack([band_shape(wave, RATE) for wave in waves]) for waves in (made, real))
    typical = np.stack([real_shapes[real_instrument == name].mean(axis=0) for name in names])
    nearest = ((shapes[:, None] - typical) ** 2).sum(-1).argmin(1)
    figures["instrument_recognised"] = float(np.mean([names[n] == i for n, i in zip(nearest, instrument, strict=True)]))
    return figures


def tempo_figures(name: str, waves: Wave, tempi: list[str]) -> dict[str, float]:
    """Onsets a second by tempo, and how many gaps between onsets are whole eighths of that tempo.

    By chance (gaps of any length alike) a share of 2 x tolerance / eighth would be.
    """
    onsets = [onset_times(wave, RATE) for wave in waves]
    rates, tempo = np.array([len(result) for result in onsets]) * RATE / waves.shape[1], np.array(tempi)
    figures = {}
    for each in sorted(set(tempi), key=lambda t: -TEMPI[t]):
        eighth = TEMPI[each] / 2 / FRAME_RATE
        figures |= spread(f"onsets_a_second/{name}/{each}", rates[tempo == each].tolist())
        shares = [on_beat(result, eighth, BEAT) for result, t in zip(onsets, tempi, strict=True) if t == each]
        figures |= spread(f"on_beat/{name}/{each}", shares)
        figures[f"on_beat/chance/{each}"] = 2 * BEAT / eighth
    fast, slow = rates[tempo == "fast"], rates[tempo == "slow"]
    figures[f"onsets_a_second/{name}/p"] = float(mannwhitneyu(fast, slow, alternative="greater").pvalue)
    return figures


def note_figures(name: str, waves: Wave) -> dict[str, float]:
    """Notes of a scale, by an automatic transcription."""
    tracks = [pitch_track(wave, RATE) for wave in waves]
    return {
        f"notes/{name}/pitched": float(np.mean([np.mean(~np.isnan(track)) for track in tracks])),
        f"notes/{name}/in_tune": float(np.mean([in_tune(track) for track in tracks])),
        f"notes/{name}/scale_consistency": float(np.mean([scale_consistency(track) for track in tracks])),
    }


def picture(rows: list[tuple[str, Wave]]) -> None:
    """Spectrograms under each other."""
    figure, axes = pyplot().subplots(len(rows), 1, figsize=(11, 2.4 * len(rows)), sharex=True, layout="constrained")
    for axis, (title, wave) in zip(axes, rows, strict=True):
        frequencies, magnitude = spectrogram(wave, RATE)
        shown = 20 * np.log10(magnitude[frequencies <= 5000] + 1e-3)
        axis.imshow(shown, origin="lower", aspect="auto", extent=(0, len(wave) / RATE, 0, 5), vmin=-45, vmax=35)
        axis.set_title(title, fontsize=9)
        axis.set_ylabel("kHz")
    axes[-1].set_xlabel("seconds")
    (DOCS / "spectrograms.png").write_bytes(png(figure, 90))


def curves() -> None:
    """The training of each part, from its metrics."""
    lines = {
        "codec": {"SI-SDR, training (dB)": "si_sdr", "SI-SDR, held out, 4 codebooks (dB)": "held_out/si_sdr/4"},
        "band-large": LANGUAGE_CURVES,
        "band-small": LANGUAGE_CURVES,
        "band-clap": {"training loss": "loss", "held-out loss": "held_out/loss"},
    }
    figure, axes = pyplot().subplots(2, 2, figsize=(11, 7), layout="constrained")
    for axis, (part, named) in zip(axes.flat, lines.items(), strict=True):
        rows = [json.loads(line) for line in (DOCS / f"{part}.jsonl").read_text().splitlines()]
        for label, name in named.items():
            points = [(row["step"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), label=label, marker="." if "held" in name else None)
        axis.set_title(part)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    (DOCS / "training.png").write_bytes(png(figure, 90))


def main() -> None:
    """Measure everything and report it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", type=Path, default=user_cache_path("tinymusician") / "corpus")
    options.add_argument("--clips", type=int, default=96)
    options.add_argument("--side", type=int, default=32)
    chosen = options.parse_args()
    corpus = load_corpus(chosen.corpus, 9000, 400)
    split = RenderedSplit(corpus.test.samples[: chosen.clips], corpus.test.clips[: chosen.clips])
    model, tokenizer = load_musicgen("band-large"), load_tokenizer("band-large")
    tokens = encode_split(model.audio_encoder, tokenizer, split)
    figures, reconstructed = codec_figures(model.audio_encoder, split, tokens)
    figures |= language_figures(model, "band-large", tokens)
    figures |= language_figures(load_musicgen("band-small"), "band-small", tokens)
    expected = prompts(chosen.side)
    made = generate(model, tokenizer, [text for text, _, _ in expected], tokens.codes.shape[2])
    figures |= steering_figures(expected, made, reconstructed, split)
    real, real_tempi = split.audio(slice(None)), [clip.facts.tempo for clip in split.clips]
    figures |= tempo_figures("generated", made, [tempo for _, _, tempo in expected])
    figures |= tempo_figures("real", real, real_tempi) | tempo_figures("reconstruction", reconstructed, real_tempi)
    figures |= note_figures("generated", made[::3]) | note_figures("real", real[:48])
    noise = np.random.default_rng(0).normal(0, 0.1, (16, made.shape[1])).astype(np.float32)
    figures |= note_figures("noise", noise)
    rows = [
        (f"real: {split.clips[0].caption}", real[0]),
        ("the same, through the codec", reconstructed[0]),
    ]
    rows += [
        (f"generated: {expected[n][0]}", made[n])
        for n in (0, chosen.side * 2 + 1, chosen.side * 4, chosen.side * 5 + 1)
    ]
    picture(rows)
    curves()
    report("house_band", figures, {"clips": chosen.clips, "side": chosen.side, "split": "test"})


if __name__ == "__main__":
    main()
