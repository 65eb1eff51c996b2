"""How good the student of `make demo` is under other settings: quiet frames, CLAP against the teacher, KAD, KL.

    python -m benchmarks.demo_student [--seeds 3] [--clips 150] [--setting "NAME: KEY=VALUE KEY=VALUE"]…

Trains recipe `band` with each setting and training seed, and evaluates all students and the teacher on the same
captions of test tunes. The runs are in the store: an interrupted benchmark continues. `clap_share` is the mean CLAP
score of the student divided by that of the teacher; its interval resamples clips, which are paired (95 %, bootstrap).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import report
from jobs.reproduce.reproduction import Reproduction
from tinymusician.evaluate.bootstrap import Interval, resampled_clips
from tinymusician.evaluate.report_tables import format_interval
from tinymusician.evaluate.results import ModelResult

RECIPE = "band"
SETTINGS = ("recipe:", "paper: objective.name=stage_mixed objective.switch=0.7 student.layers=[1,7]")
RESAMPLES = 2000
COLUMNS = ("seed", "quiet frames", "degenerate", "CLAP", "CLAP / teacher's", "KAD", "KL")


def main() -> None:
    """Train, evaluate, print a table, and keep the figures."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=150)
    parser.add_argument("--setting", action="append", help="NAME: KEY=VALUE …; default: the recipe and the paper's")
    options = parser.parse_args()
    settings = dict(_parse(text) for text in options.setting or SETTINGS)
    jobs, students = Reproduction("demo-student", RECIPE, workers=1), {"teacher": "teacher"}
    for name, overrides in settings.items():
        for seed in range(options.seeds):
            run = jobs.run("distill", f"{name}-{seed}", f"training.seed={seed}", *overrides)
            students[f"{name} {seed}"] = str(run.result().artifact)
    measured = (f"evaluate.clips={options.clips}", "evaluate.cost_runs=0")
    _, result = jobs.evaluate("evaluation", *measured, **students)
    by_label = {model.label: model for model in result.models}
    teacher = by_label["teacher"]
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    figures: dict[str, float] = {}
    for label, model in by_label.items():
        share = clap_share(np.asarray(model.clap_by_clip), np.asarray(teacher.clap_by_clip))
        print(_row(label, model, share))
        figures |= {f"{label}: quiet": model.degenerate.quiet, f"{label}: clap_share": share.value}
        figures[f"{label}: clap_share_low"] = share.low if share.low is not None else float("nan")
    for name in settings:
        scores = np.mean([by_label[f"{name} {seed}"].clap_by_clip for seed in range(options.seeds)], axis=0)
        share = clap_share(scores, np.asarray(teacher.clap_by_clip))
        print(f"{name}, all seeds: CLAP / teacher's {format_interval(share)}")
        figures[f"{name}: clap_share"] = share.value
        figures[f"{name}: clap_share_low"] = share.low if share.low is not None else float("nan")
    report("demo_student", figures, {"clips": options.clips, "seeds": options.seeds, "settings": json.dumps(settings)})


def _parse(text: str) -> tuple[str, tuple[str, ...]]:
    name, colon, overrides = text.partition(":")
    if not colon:
        sys.exit(f"--setting {text!r}: the form is NAME: KEY=VALUE …")
    return name.strip(), tuple(overrides.split())


def clap_share(student: npt.NDArray[np.float64], teacher: npt.NDArray[np.float64]) -> Interval:
    """The ratio of mean CLAP scores [clips], with its paired percentile interval over clips that are finite in both."""
    both = np.isfinite(student) & np.isfinite(teacher)
    student, teacher = student[both], teacher[both]
    clips = resampled_clips(len(student), RESAMPLES, seed=0)
    ratios = student[clips].mean(axis=1) / teacher[clips].mean(axis=1)
    low, high = (float(edge) for edge in np.quantile(ratios, (0.025, 0.975)))
    return Interval(float(student.mean() / teacher.mean()), low, high)


def _row(label: str, model: ModelResult, share: Interval) -> str:
    cells = [
        label,
        f"{model.degenerate.quiet:.1%}",
        f"{model.degenerate.clips}",
        format_interval(model.distribution.clap_score),
        format_interval(share),
        format_interval(model.distribution.kad),
        format_interval(model.agreement.forward if model.agreement else None),
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
