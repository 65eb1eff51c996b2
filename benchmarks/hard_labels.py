"""TinyTTM's missing pieces on the house band: hard labels, a fine-tuned teacher, maps without a fit.

    python -m benchmarks.hard_labels [--steps 100] [--seeds 2] [--clips 200]

All students are band-ttm's language model, pruned alike, and trained as long on as many sequences:

    plain           the objective, on samples of band-large
    real            the objective, on samples and on as many real clips
    hard            the same with a quarter of cross-entropy (`objective.hard=0.25`)
    tuned           the objective, on samples of band-large after it was fine-tuned on the clips, which teaches

Of each, on real clips of test tunes, in nats per code: the negative log-likelihood, its difference from plain's, and
the KL from band-large. Each clip counts with its mean over the seeds, and 95 % intervals are over the clips;
differences are paired. Beside them, the text encoder and the codec with maps that start from least squares and without
a fit (`map_start`): their held-out figures, by seed.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.balance import FRAMES, compared, validated_after
from benchmarks.band import GUIDANCE, sample_band_large, sample_tokens
from benchmarks.report import report
from jobs.distill.models import new_student
from jobs.distill.objective import objective_config
from tinymusician.data.splits import Split
from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.sequences import mix
from tinymusician.distill.signals import OnlineTeacher, SignalSet
from tinymusician.distill.task import DistillTask
from tinymusician.evaluate.bootstrap import mean_interval
from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.house_band.corpus import SEED, load_split
from tinymusician.house_band.pretrain import encode_split
from tinymusician.house_band.tunes import TUNES, load_tunes
from tinymusician.models.conditional_decoder import encode_text
from tinymusician.models.divergences import forward_kl
from tinymusician.models.likelihood import cross_entropies, forced_logits
from tinymusician.models.musicgen import load_tokenizer
from tinymusician.models.protocols import Musicgen
from tinymusician.recipe import load_recipe
from tinymusician.user_folders import user_folder

HARD = 0.25
BATCH = 20


def main() -> None:
    """Train every variant with every seed, measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--clips", type=int, default=200, help="real clips, and samples of the teacher")
    options = parser.parse_args()
    teacher, samples = sample_band_large("train", options.clips, FRAMES, seed=1)
    _, held_out = sample_band_large("validation", 16, FRAMES, seed=2)
    real, test = real_clips(teacher, "train", options.clips), real_clips(teacher, "test", options.clips)
    both, steps = mix(samples, real, 0.5), options.steps
    figures = {"band-large/nll": float(nll(teacher, test).mean())}
    by_variant: dict[str, list[Floats]] = {}
    for seed in range(options.seeds):
        tuned = fine_tuned(teacher, real, held_out, steps, seed)
        figures[f"tuned teacher/nll/{seed}"] = float(nll(tuned, test).mean())
        of_tuned = sample_tokens(tuned, "train", options.clips, FRAMES, 1)
        for name, one, tokens, hard in (
            ("plain", teacher, samples, 0.0),
            ("real", teacher, both, 0.0),
            ("hard", teacher, both, HARD),
            ("tuned", tuned, of_tuned, 0.0),
        ):
            student = distilled(one, (teacher, held_out), tokens, hard, steps, seed)
            by_variant.setdefault(name, []).append(np.stack([nll(student, test), kl(teacher, student, test)]))
            print(name, seed, by_variant[name][-1].mean(1).round(4), flush=True)
    means = {name: np.mean(results, axis=0) for name, results in by_variant.items()}
    for name, (nlls, kls) in means.items():
        for what, values in {"nll": nlls, "nll_above_plain": nlls - means["plain"][0], "kl": kls}.items():
            interval = mean_interval(values)
            figures |= {f"{name}/{what}": interval.value, f"{name}/{what}/low": interval.low or 0.0}
            figures[f"{name}/{what}/high"] = interval.high or 0.0
    for seed in range(options.seeds):
        for start in ("least_squares", "copy"):
            parts = compared(teacher, samples, held_out, "uncertainty", seed, is_fitted=start == "least_squares")
            figures |= {f"{start}/{name}/{seed}": value for name, value in parts.items()}
    report("hard_labels", figures, vars(options))


def real_clips(teacher: Musicgen, split: Split, clips: int) -> TokenDataset:
    """The codec's codes of rendered clips of a split, with their captions."""
    folder = user_folder("cache") / "corpus"
    rendered = load_split(folder, load_tunes(folder / TUNES), split, clips, SEED)
    return encode_split(teacher.audio_encoder, load_tokenizer("band-large"), rendered)


def fine_tuned(teacher: Musicgen, clips: TokenDataset, held_out: TokenDataset, steps: int, seed: int) -> Musicgen:
    """A copy of the teacher after cross-entropy alone."""
    model = copy.deepcopy(teacher)
    _train(model, teacher, clips, (teacher, held_out), 1.0, steps, seed, rate=1e-4)
    return model.eval()


def distilled(
    teacher: Musicgen,
    validation: tuple[Musicgen, TokenDataset],
    tokens: TokenDataset,
    hard: float,
    steps: int,
    seed: int,
) -> Musicgen:
    """band-ttm's language model, distilled."""
    recipe = load_recipe("band-ttm", ("text_encoder=null", "codec=null", "joint.steps=0"))
    student = new_student(recipe, teacher)
    _train(student, teacher, tokens, validation, hard, steps, seed, recipe.training.learning_rate)
    return student.eval()


def _train(
    student: Musicgen,
    teacher: Musicgen,
    tokens: TokenDataset,
    validation: tuple[Musicgen, TokenDataset],
    hard: float,
    steps: int,
    seed: int,
    rate: float,
) -> None:
    """Train a student's decoder, with the held-out KL to the model of `validation` on its sequences."""
    values = ("text_encoder=null", "codec=null", "joint.steps=0", f"objective.hard={hard}", f"training.seed={seed}")
    recipe = load_recipe("band-ttm", (*values, f"training.steps={steps}"))
    torch.manual_seed(seed)
    train, held_out = (
        SignalSet(OnlineTeacher(model, sequences, recipe.teacher.target, GUIDANCE, torch.float32), len(sequences.codes))
        for model, sequences in ((teacher, tokens), validation)
    )
    objective, batch = objective_config(recipe, steps), recipe.training.batch_size
    task = DistillTask(student, train, held_out, objective, batch, seed)
    validated_after("distill", task, recipe, steps, rate)


@torch.no_grad()
def nll(model: Musicgen, clips: TokenDataset) -> Floats:
    """The negative log-likelihood of every clip's codes given its caption, in nats per code, [N]."""
    batches = [cross_entropies(_logits(model, batch)[0], batch.codes.astype(np.int64)) for batch in _batches(clips)]
    return torch.cat(batches).double().numpy()


@torch.no_grad()
def kl(teacher: Musicgen, student: Musicgen, clips: TokenDataset) -> Floats:
    """The forward KL of every clip's codes given its caption, in nats per code, [N]."""
    values = []
    for batch in _batches(clips):
        (of_teacher, carries), (of_student, _) = _logits(teacher, batch), _logits(student, batch)
        each = forward_kl(of_teacher.double().log_softmax(-1), of_student.double().log_softmax(-1))
        values.append((each * carries).sum((1, 2)) / carries.sum((1, 2)))
    return torch.cat(values).numpy()


def _batches(clips: TokenDataset) -> Iterator[TokenDataset]:
    for start in range(0, len(clips.codes), BATCH):
        yield clips.select(np.arange(start, min(start + BATCH, len(clips.codes))))


def _logits(model: Musicgen, clips: TokenDataset) -> tuple[Tensor, Tensor]:
    text = encode_text(model, torch.from_numpy(clips.text_ids), torch.from_numpy(clips.text_mask))
    return forced_logits(model, text, clips.codes.astype(np.int64))


if __name__ == "__main__":
    main()
