"""KL between the sampling distributions of students and their teacher at several guidance scales.

    python -m benchmarks.guidance NAME=REF|FOLDER … [--scales 1 2 3 4 5]

For every student and scale: `NAME@S`, forward KL in nats per code from band-large's guided distribution (two passes) to
the student's, along band-large's samples for the test captions, and `NAME_passes`, the passes per step. A guided
student without guidance conditioning ignores the requested scale.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor

from benchmarks.band import sample_band_large
from benchmarks.report import report
from tinymusician.distill.closeness import held_out_closeness
from tinymusician.distill.guidance_scales import FixedScaleSource
from tinymusician.distill.sampling_stats import sampling_logits
from tinymusician.distill.signals import OnlineTeacher, TeacherSignals
from tinymusician.models.conditional_decoder import ConditionedDecoder
from tinymusician.models.guidance import plays_in_one_pass
from tinymusician.models.musicgen import load_musicgen
from tinymusician.models.protocols import Musicgen


def student_logits(student: Musicgen, decoder: ConditionedDecoder, signals: TeacherSignals) -> Tensor:
    """What a student is played from along a teacher's sequences."""
    return sampling_logits(student, decoder, signals.sequences)


def main() -> None:
    """Every student at every scale, on the same sequences."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("students", nargs="+", metavar="NAME=REF|FOLDER")
    options.add_argument("--scales", nargs="+", type=float, default=[1, 2, 3, 4, 5])
    options.add_argument("--clips", type=int, default=32)
    chosen = options.parse_args()
    teacher, tokens = sample_band_large("test", chosen.clips, frames=250, seed=1)
    source = OnlineTeacher(teacher, tokens, "conditional", 1.0, torch.float32)
    figures: dict[str, float] = {}
    for name, _, reference in (one.partition("=") for one in chosen.students):
        student = load_musicgen(reference)
        decoder = ConditionedDecoder(student).eval()
        figures[f"{name}_passes"] = 1 if plays_in_one_pass(student) else 2
        for scale in chosen.scales:
            result = held_out_closeness(
                FixedScaleSource(source, scale), len(tokens.codes), 8, partial(student_logits, student, decoder)
            )
            figures[f"{name}@{scale:g}"] = result["kl"]
    report("guidance", figures, {"clips": len(tokens.codes), "scales": chosen.scales})


if __name__ == "__main__":
    main()
