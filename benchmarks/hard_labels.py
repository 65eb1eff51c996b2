"""TinyTTM's missing pieces on the house band: hard labels, a fine-tuned teacher, maps without a fit.

    python -m benchmarks.hard_labels [--steps 100] [--seeds 2] [--clips 200]

All students are band-ttm's language model, pruned alike, and trained as long on as many sequences:

    plain           the objective, on samples of band-large
    real            the objective, on samples and on as many real clips
    hard            the same with a quarter of cross-entropy (`objective.hard=0.25`)
    tuned           the objective, on samples of band-large after it was fine-tuned on the clips, which teaches

Of each: the negative log-likelihood of real clips of test tunes in nats per code, with its 95 % interval over the clips
(mean of the seeds), and the held-out KL to band-large. Beside them, the text encoder and the codec with maps that start
from least squares and without a fit (`map_start`): their held-out figures, by seed.
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import torch

from benchmarks.balance import FRAMES, compared, validated_after
from benchmarks.band import GUIDANCE, played_by_the_band, samples_of
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
    teacher, samples = played_by_the_band("train", options.clips, FRAMES, seed=1)
    _, held_out = played_by_the_band("validation", 16, FRAMES, seed=2)
    real, test = real_clips(teacher, "train", options.clips), real_clips(teacher, "test", options.clips)
    both, steps = mix(samples, real, 0.5), options.steps
    figures = {"band-large/nll": float(nll(teacher, test).mean())}
    by_variant: dict[str, list[tuple[Floats, float]]] = {}
    for seed in range(options.seeds):
        tuned = fine_tuned(teacher, real, held_out, steps, seed)
        figures[f"tuned teacher/nll/{seed}"] = float(nll(tuned, test).mean())
        of_tuned = samples_of(tuned, "train", options.clips, FRAMES, 1)
        for name, one, tokens, hard in (
            ("plain", teacher, samples, 0.0),
            ("real", teacher, both, 0.0),
            ("hard", teacher, both, HARD),
            ("tuned", tuned, of_tuned, 0.0),
        ):
            student, kl = distilled(one, (teacher, held_out), tokens, hard, steps, seed)
            by_variant.setdefault(name, []).append((nll(student, test), kl))
            print(name, seed, round(float(by_variant[name][-1][0].mean()), 4), round(kl, 4), flush=True)
    for name, results in by_variant.items():
        interval = mean_interval(np.mean([values for values, _ in results], axis=0))
        figures |= {f"{name}/nll": interval.value, f"{name}/nll/low": interval.low or 0.0}
        figures |= {f"{name}/nll/high": interval.high or 0.0, f"{name}/kl": float(np.mean([kl for _, kl in results]))}
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
) -> tuple[Musicgen, float]:
    """band-ttm's language model, distilled; and its held-out KL."""
    recipe = load_recipe("band-ttm", ("text_encoder=null", "codec=null", "joint.steps=0"))
    student = new_student(recipe, teacher)
    kl = _train(student, teacher, tokens, validation, hard, steps, seed, recipe.training.learning_rate)
    return student.eval(), kl


def _train(
    student: Musicgen,
    teacher: Musicgen,
    tokens: TokenDataset,
    validation: tuple[Musicgen, TokenDataset],
    hard: float,
    steps: int,
    seed: int,
    rate: float,
) -> float:
    """Train a student's decoder; returns the held-out KL to the model of `validation` on its sequences."""
    values = ("text_encoder=null", "codec=null", "joint.steps=0", f"objective.hard={hard}", f"training.seed={seed}")
    recipe = load_recipe("band-ttm", (*values, f"training.steps={steps}"))
    torch.manual_seed(seed)
    train, held_out = (
        SignalSet(OnlineTeacher(model, sequences, recipe.teacher.target, GUIDANCE, torch.float32), len(sequences.codes))
        for model, sequences in ((teacher, tokens), validation)
    )
    objective, batch = objective_config(recipe, steps), recipe.training.batch_size
    task = DistillTask(student, train, held_out, objective, batch, seed)
    return validated_after("distill", task, recipe, steps, rate)["kl"]


@torch.no_grad()
def nll(model: Musicgen, clips: TokenDataset) -> Floats:
    """The negative log-likelihood of every clip's codes given its caption, in nats per code, [N]."""
    values = []
    for start in range(0, len(clips.codes), BATCH):
        rows = slice(start, start + BATCH)
        text = encode_text(model, torch.from_numpy(clips.text_ids[rows]), torch.from_numpy(clips.text_mask[rows]))
        codes = clips.codes[rows].astype(np.int64)
        values.append(cross_entropies(forced_logits(model, text, codes)[0], codes).numpy())
    return np.concatenate(values).astype(np.float64)


if __name__ == "__main__":
    main()
