"""Reproduces the paper's figures and tables with one command: the runs that they need, and the result of each claim.

Each is an ordinary run in the store. A run that has succeeded is reused, an interrupted one continues. The reports are
copied into one folder.

Usage: python -m jobs.reproduce.paper FOLDER [figures|sweeps|table3|table4|precision]… [--recipe RECIPE] [--workers N]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jobs.registry import JobKind
from jobs.reproduce.reproduction import Models, Reproduction
from tinymusician.artifacts.manifest import find
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.runs import RunStore
from tinymusician.config_model import Document
from tinymusician.errors import RecipeError, TinyMusicianError
from tinymusician.evaluate.claims import (
    Claim,
    ClaimResult,
    at_most,
    higher,
    lower,
    not_worse,
    rising,
    slower,
    within_tolerance,
)
from tinymusician.evaluate.results import ModelResult
from tinymusician.evaluate.sweep_results import SweepResult
from tinymusician.html_report import html_note, html_table, page
from tinymusician.models.shape import shape_of
from tinymusician.quantize.precision import PLANS
from tinymusician.recipe import load_recipe

PRECISIONS = ("float32", "float16", "int8", "int4")
_OPEN_THRESHOLD = "{kl: 5, agreement: 0, codec_snr: 0}"


class SavedClaims(Document):
    """The claims of a folder, as claims.json has them."""

    recipe: str
    minutes: float
    claims: tuple[Claim, ...]


class PaperReproduction(Reproduction):
    """Runs the jobs that the tables need, copies their reports, and collects the claims."""

    def __init__(self, folder: Path, recipe: str, workers: int) -> None:
        super().__init__("paper", recipe, workers)
        self.folder = folder
        self.claims: list[Claim] = []
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, kind: JobKind, name: str, *overrides: str) -> RunStore:
        """A run that has succeeded; its report is copied to the folder."""
        run = super().run(kind, name, *overrides)
        for suffix, report in run.report_files().items():
            (self.folder / f"{name}.{suffix}").write_bytes(report)
        return run

    def figures(self) -> None:
        """Figures 2 and 3: the six objectives, three seeds each."""
        run = self.run("sweep", "figures", 'sweep.over=["objectives"]')
        for claim in run.report(SweepResult).claims:
            self._claim(claim.source, f"stage_mixed: {claim.statement}", claim.result)

    def sweeps(self) -> None:
        """The trainings of the paper's summary: τ, λ, switch."""
        self.run("sweep", "sweeps", 'sweep.over=["temperature", "skew", "switch"]', "sweep.seeds=1")

    def table3(self) -> None:
        """Table 3: baseline, + KD, + quantization, + both."""
        small = getattr(load_recipe(self.recipe).student, "model", None)
        if small is None:
            raise RecipeError(
                f"recipe {self.recipe}: table 3 begins with a ready student; student.kind=pretrained is needed"
            )
        distilled = self.distill("kd")
        quantized, both = self.compress("quantized", small, "paper"), self.compress("kd-paper", distilled, "paper")
        rows = self.compare("table3", base="untrained", kd=distilled, quantized=quantized, both=both)
        base, kd = rows["base"], rows["kd"]
        self._claim("table 3", "KD lowers FAD", _lower_fad(kd, base))
        tolerance = within_tolerance(kd.clap_by_clip, base.clap_by_clip, 0.01)
        self._claim("table 3", "KD does not change CLAP by more than 1 %", tolerance)
        self._claim("table 3", "quantization raises FAD", _lower_fad(base, rows["quantized"]))
        self._claim("table 3", "quantization raises CLAP", _higher_clap(rows["quantized"], base))
        full = self.compress("kd-float32", distilled, "float32")
        sizes = [_bundle_size(reference) for reference in (both, full)]
        share = at_most(sizes[0] / sizes[1], 0.45)
        self._claim("table 3", "KD and mixed precision: at most 45 % of the float32 bundle", share)

    def table4(self) -> None:
        """Table 4: precisions of the decoder, three sizes of students, conditional against guided, with cost."""
        distilled = self.distill("kd")
        plans = {
            plan: self.compress(f"kd-{plan}", distilled, plan) for plan in ("float32", "int8", "paper", "adaptive")
        }
        sizes = [
            self.distill(f"cut-{len(layers)}", "student.kind=prune_layers", f"student.layers={layers}")
            for layers in layer_cuts(self.depth())
        ]
        guided = self.distill("guided", "teacher.target=guided")
        names = dict(zip(("an eighth of the layers", "a quarter", "half"), sizes, strict=True))
        rows = self.compare("table4", **{"KD": distilled, **plans, **names, "guided": guided})
        original, full, int8, mixed, adaptive, *smaller, one_pass = rows.values()
        self._claim("table 4", "uniform int8 has a higher FAD than mixed precision", _lower_fad(mixed, int8))
        self._claim("table 4", "uniform int8 has a lower CLAP than mixed precision", _higher_clap(mixed, int8))
        self._claim("table 4", "mixed precision is slower than float32", slower(mixed.cost, full.cost))
        share = at_most(adaptive.size / full.size, 0.45)
        self._claim("beyond", "adaptive: at most 45 % of the float32 bundle", share)
        self._claim("beyond", "adaptive: FAD not higher than float32", not_worse(_lower_fad(full, adaptive)))
        self._claim("beyond", "guided: one pass takes less time than two", slower(original.cost, one_pass.cost))
        self._claim("beyond", "guided: CLAP not lower", not_worse(_higher_clap(original, one_pass)))
        self._claim("beyond", "more layers, higher CLAP", rising([model.clap_by_clip for model in smaller]))

    def precision(self) -> None:
        """The paper's plan, with the decoder in each precision."""
        distilled = self.distill("kd")
        bundles = {name: self.compress(f"kd-decoder-{name}", distilled, json.dumps(_plan(name))) for name in PRECISIONS}
        full, *coarser = self.compare("precision", **bundles).values()
        for name, model in zip(PRECISIONS[1:], coarser, strict=True):
            size = f"{model.size / full.size:.2f} of the bytes"
            fad, clap = not_worse(_lower_fad(full, model)), not_worse(_higher_clap(full, model))
            self._claim("precision", f"decoder in {name}: FAD not higher", fad.with_evidence(size))
            self._claim("precision", f"decoder in {name}: CLAP not lower", clap.with_evidence(size))

    def distill(self, name: str, *overrides: str) -> str:
        """Distil a student from the signals that all conditional students share; returns its reference."""
        if not any(override.partition("=")[0] == "teacher.target" for override in overrides):
            self.run("precompute", "signals")
            overrides = (*overrides, "signals.source=cached")
        return super().distill(name, *overrides)

    def compress(self, name: str, model: str, plan: str) -> str:
        """Quantize a model; returns the bundle's reference. int4 has no threshold: its loss is to be measured."""
        return self.quantize(name, model, plan, f"quantize.thresholds.int4={_OPEN_THRESHOLD}")

    def compare(self, name: str, **references: str) -> Models:
        """Evaluate models; returns their results by the given labels."""
        _, result = self.evaluate(name, **references)
        return dict(zip(references, result.models, strict=True))

    def depth(self) -> int:
        """The number of the teacher's layers.

        Raises:
            RecipeError: it cannot be known without its weights.
        """
        teacher = load_recipe(self.recipe).teacher.model
        shape = shape_of(teacher)
        if shape is None:
            raise RecipeError(f"teacher.model = {teacher!r}: its layers are not known here; give a folder")
        return shape.layers

    def _claim(self, source: str, statement: str, result: ClaimResult) -> None:
        self.claims.append(Claim(source=source, statement=statement, result=result))

    def close(self, began: float) -> None:
        """Write the page with the claims, and claims.json; print the claims."""
        file = self.folder / "claims.json"
        earlier = SavedClaims.model_validate_json(file.read_text("utf-8")).claims if file.exists() else ()
        current = {(claim.source, claim.statement) for claim in self.claims}
        claims = [claim for claim in earlier if (claim.source, claim.statement) not in current] + self.claims
        rows = [(claim.source, claim.statement, str(claim.result)) for claim in claims]
        links = [f'<li><a href="{path.name}">{path.stem}</a></li>' for path in sorted(self.folder.glob("*.html"))]
        parts = [
            ("Claims", html_table(("source", "claim", "here"), rows) + html_note(_NOTE)),
            ("Reports", f"<ul>{''.join(link for link in links if 'index' not in link)}</ul>"),
        ]
        (self.folder / "index.html").write_text(page(f"{self.recipe}: the paper's claims", parts), "utf-8")
        minutes = round((time.monotonic() - began) / 60, 1)
        saved = SavedClaims(recipe=self.recipe, minutes=minutes, claims=tuple(claims))
        file.write_text(saved.model_dump_json(indent=2), "utf-8")
        for source, statement, result in rows:
            print(f"{source:<13} {statement}: {result}")
        print(f"\nreports {self.folder}/index.html, after {minutes} minutes")


def layer_cuts(depth: int) -> list[list[int]]:
    """Students of three sizes: an eighth, a quarter and half of the layers, evenly spaced, with the last one."""
    counts = [max(1, depth // part) for part in (8, 4, 2)]
    return [sorted({depth - 1 - round(step * (depth - 1) / max(1, n - 1)) for step in range(n)}) for n in counts]


def _lower_fad(one: ModelResult, other: ModelResult) -> ClaimResult:
    return lower(one.distribution.fad_infinity, other.distribution.fad_infinity)


def _higher_clap(one: ModelResult, other: ModelResult) -> ClaimResult:
    return higher(one.clap_by_clip, other.clap_by_clip)


def _bundle_size(reference: str) -> int:
    return int(find(open_store(), reference).metrics["size"])


def _plan(decoder: str) -> dict[str, object]:
    """The paper's plan with another precision of the decoder."""
    return {**PLANS["paper"], "name": f"paper-{decoder}", "default": decoder}


_NOTE = (
    "Distances differ where their 95 % intervals do not overlap; CLAP scores, which are of the same captions, where "
    "the interval of the paired difference excludes 0; times where all runs of one are longer. Claims under `beyond` "
    "are not the paper's. Nothing was tuned to make a claim hold."
)
PARTS: dict[str, Callable[[PaperReproduction], None]] = {
    "figures": PaperReproduction.figures,
    "sweeps": PaperReproduction.sweeps,
    "table3": PaperReproduction.table3,
    "table4": PaperReproduction.table4,
    "precision": PaperReproduction.precision,
}


def main() -> None:
    """Run the parts that are asked for, all of them by default."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all if none is given")
    arguments.add_argument("--recipe", default="paper-band")
    arguments.add_argument("--workers", type=int, default=2)
    chosen = arguments.parse_args()
    for part in chosen.parts:
        if part not in PARTS:
            arguments.error(f"part {part!r}: allowed are {', '.join(PARTS)}")
    began = time.monotonic()
    paper = PaperReproduction(chosen.folder, chosen.recipe, chosen.workers)
    try:
        for part in chosen.parts or PARTS:
            PARTS[part](paper)
    except TinyMusicianError as error:
        sys.exit(f"error: {error}")
    paper.close(began)


if __name__ == "__main__":
    main()
