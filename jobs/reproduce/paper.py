"""The paper's figures and tables as one command: the runs that they need, in order, and what became of each claim.

Every piece is an ordinary run in the store, named by what it is and everything it depends on: one that has succeeded is
not run again, one that was interrupted goes on. Reports are copied beside each other into one folder.

Usage: python -m jobs.reproduce.paper FOLDER [figures|sweeps|table3|table4|precision]… [--recipe RECIPE] [--workers N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from jobs.cli.output import follow
from jobs.registry import JobKind
from jobs.reproduce.claims import FAILS, HOLDS, higher, lower, not_worse, rising, slower, within_tolerance
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.run_summary import summary
from tinymusician.artifacts.runs import RunStore
from tinymusician.data.shards import fingerprint
from tinymusician.errors import NotFoundError, RecipeError, TinyMusicianError
from tinymusician.html_report import html_note, html_table, page
from tinymusician.models.shape import shape_of
from tinymusician.quantize.precision import PLANS
from tinymusician.recipe import load_recipe

Claims = list[tuple[str, str, str]]
PRECISIONS = ("float32", "float16", "int8", "int4")
_OPEN_THRESHOLD = "{kl: 5, agreement: 0, codec_snr: 0}"


class PaperReproduction:
    """Runs what the tables need, and keeps what they said."""

    def __init__(self, folder: Path, recipe: str, workers: int) -> None:
        self.folder, self.recipe, self.workers = folder, recipe, workers
        self.claims: Claims = []
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, kind: JobKind, what: str, recipe: str | None = None, *words: str) -> dict[str, Any]:
        """A run that has succeeded: an earlier one of the same content, or a new one.

        Raises:
            TinyMusicianError: it failed.
        """
        recipe = recipe or self.recipe
        sets = tuple(word for before, word in pairwise(words) if before == "--set")
        content = load_recipe(recipe, sets).model_dump(mode="json")
        digest = fingerprint({"kind": kind, "recipe": content, "words": list(words)})[:8]
        name = f"paper-{what}-{digest}"
        state = _state(name)
        if state in ("PENDING", "RUNNING"):  # left behind by one that was interrupted
            print(f"== {what}: {name} runs already", flush=True)
            state = follow(RunStore(open_store(), name), quiet=False)
        if state != "SUCCEEDED":
            again = ["--resume", name] if state is not None else ["--name", name, *words]
            command = [sys.executable, "-m", "jobs.cli.main", "submit", kind, recipe, *again]
            command += [] if state is not None else ["--workers", str(self.workers)]
            print(f"== {what}: {' '.join(command[3:])}", flush=True)
            if subprocess.run(command, check=False).returncode != 0:
                raise TinyMusicianError(f"paper: {what} failed; see `tmctl logs {name}`, then run this again")
        result = summary(RunStore(open_store(), name))
        self._copy(name, what)
        return result

    def _copy(self, run: str, what: str) -> None:
        store = open_store()
        for kind in ("html", "md", "json"):
            try:
                (self.folder / f"{what}.{kind}").write_bytes(store.get(f"runs/{run}/report.{kind}"))
            except NotFoundError:
                continue

    def report(self, what: str) -> dict[str, Any]:
        """A run's figures."""
        report: dict[str, Any] = json.loads((self.folder / f"{what}.json").read_text())
        return report

    def figures(self) -> None:
        """Figures 2 and 3: the six objectives, three seeds each."""
        self.run("sweep", "figures", None, "--over", "objectives")
        for claim, how in self.report("figures")["claims"]:
            self.claims.append(("figures 2, 3", f"stage_mixed: {claim}", how))

    def sweeps(self) -> None:
        """The next checks of the paper's summary that need trainings: τ, λ, switch."""
        sets = ("--set", "sweep.seeds=1")
        self.run("sweep", "sweeps", None, "--over", "temperature", "--over", "skew", "--over", "switch", *sets)

    def table3(self) -> None:
        """Table 3: baseline, + KD, + quantization, + both."""
        small = getattr(load_recipe(self.recipe).student, "model", None)
        if small is None:
            raise RecipeError(
                f"recipe {self.recipe}: table 3 begins with a ready student; student.kind=pretrained is needed"
            )
        distilled = self.distilled("kd")
        quantized, both = self.bundle("quantized", small, "paper"), self.bundle("kd-paper", distilled, "paper")
        rows = self.judged("table3", base="untrained", kd=distilled, quantized=quantized, both=both)
        self._claim("table 3", "KD lowers FAD", lower(rows["kd"], rows["base"], "fad_infinity"))
        self._claim(
            "table 3", "KD does not change CLAP by more than 1 %", within_tolerance(rows["kd"], rows["base"], 0.01)
        )
        self._claim("table 3", "quantization raises FAD", lower(rows["base"], rows["quantized"], "fad_infinity"))
        self._claim("table 3", "quantization raises CLAP", higher(rows["quantized"], rows["base"]))
        whole, mixed = (self.bundled(f"kd-{plan}", distilled, plan)["metrics"]["size"] for plan in ("float32", "paper"))
        self._claim(
            "table 3",
            "KD and mixed precision: at most 45 % of the float32 bundle",
            within_clap_tolerance(mixed / whole, 0.45),
        )

    def table4(self) -> None:
        """Table 4: precisions of the decoder, three sizes of students, conditional against guided, with cost."""
        distilled = self.distilled("kd")
        plans = {plan: self.bundle(f"kd-{plan}", distilled, plan) for plan in ("float32", "int8", "paper", "adaptive")}
        sizes = [
            self.distilled(
                f"cut-{len(layers)}", "--set", "student.kind=prune_layers", "--set", f"student.layers={layers}"
            )
            for layers in layer_cuts(self.depth())
        ]
        guided = self.distilled("guided", "--set", "teacher.target=guided")
        names = dict(zip(("an eighth of the layers", "a quarter", "half"), sizes, strict=True))
        rows = self.judged("table4", **{"KD": distilled, **plans, **names, "guided": guided})
        original, full, int8, mixed, adaptive, *smaller, one_pass = rows.values()
        self._claim("table 4", "uniform int8 has a higher FAD than mixed precision", lower(mixed, int8, "fad_infinity"))
        self._claim("table 4", "uniform int8 has a lower CLAP than mixed precision", higher(mixed, int8))
        self._claim("table 4", "mixed precision is slower than float32", slower(mixed, full))
        share = within_clap_tolerance(adaptive["bytes"] / full["bytes"], 0.45)
        self._claim("beyond", "adaptive: at most 45 % of the float32 bundle", share)
        self._claim("beyond", "adaptive: FAD not higher than float32", not_worse(lower(full, adaptive, "fad_infinity")))
        self._claim("beyond", "guided: one pass takes less time than two", slower(original, one_pass))
        self._claim("beyond", "guided: CLAP not lower", not_worse(higher(original, one_pass)))
        self._claim("beyond", "more layers, higher CLAP", rising(smaller))

    def precision(self) -> None:
        """The next check that needs none: the paper's plan, with the decoder in each precision."""
        distilled = self.distilled("kd")
        bundles = {one: self.bundle(f"kd-decoder-{one}", distilled, json.dumps(_plan(one))) for one in PRECISIONS}
        full, *fewer = self.judged("precision", **bundles).values()
        for one, row in zip(PRECISIONS[1:], fewer, strict=True):
            what = f"decoder in {one}, {row['bytes'] / full['bytes']:.2f} of the bytes"
            self._claim("precision", f"{what}: FAD not higher", not_worse(lower(full, row, "fad_infinity")))
            self._claim("precision", f"{what}: CLAP not lower", not_worse(higher(full, row)))

    def distilled(self, what: str, *words: str) -> str:
        """A student, distilled on the recipe's steps from the signals that all conditional students share."""
        if not any("teacher.target" in word for word in words):
            self.run("precompute", "signals")
            words = (*words, "--set", "signals.source=cached")
        return str(self.run("distill", what, None, *words)["artifact"])

    def bundle(self, what: str, model: str, plan: str) -> str:
        """A bundle of a model."""
        return str(self.bundled(what, model, plan)["artifact"])

    def bundled(self, what: str, model: str, plan: str) -> dict[str, Any]:
        """The run that made it. The gate of int4 stands open: what it costs is what is asked here."""
        words = (
            "--model",
            model,
            "--set",
            f"quantize.plan={plan}",
            "--set",
            f"quantize.thresholds.int4={_OPEN_THRESHOLD}",
        )
        return self.run("quantize", what, None, *words)

    def depth(self) -> int:
        """The teacher's layers.

        Raises:
            RecipeError: they are not known without its weights.
        """
        teacher = load_recipe(self.recipe).teacher.model
        shape = shape_of(teacher)
        if shape is None:
            raise RecipeError(f"teacher.model = {teacher!r}: its layers are not known here; give a folder")
        return shape.layers

    def judged(self, what: str, **model_ids: str) -> dict[str, dict[str, Any]]:
        """Figures of models, by the names they have in the report."""
        words = [word for name, model_id in model_ids.items() for word in ("--model", f"{name}={model_id}")]
        self.run("evaluate", what, None, *words)
        models = self.report(what)["models"]
        return {name: models[name] for name in model_ids}

    def _claim(self, where: str, claim: str, verdict: str) -> None:
        self.claims.append((where, claim, verdict))

    def close(self, began: float) -> None:
        """The page with the verdicts, and the same as JSON."""
        earlier = self.folder / "claims.json"
        earlier_claims = json.loads(earlier.read_text())["claims"] if earlier.exists() else []
        current = {(where, claim) for where, claim, _ in self.claims}
        self.claims = [tuple(one) for one in earlier_claims if (one[0], one[1]) not in current] + self.claims
        links = [f'<li><a href="{path.name}">{path.stem}</a></li>' for path in sorted(self.folder.glob("*.html"))]
        parts = [
            ("What holds here", html_table(("where", "claim", "here"), self.claims) + html_note(_NOTE)),
            ("Reports", f"<ul>{''.join(link for link in links if 'index' not in link)}</ul>"),
        ]
        (self.folder / "index.html").write_text(page(f"{self.recipe}: the paper's claims", parts))
        facts = {"recipe": self.recipe, "minutes": round((time.monotonic() - began) / 60, 1), "claims": self.claims}
        (self.folder / "claims.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False))
        for where, claim, verdict in self.claims:
            print(f"{where:<13} {claim}: {verdict}")
        print(f"\nreports {self.folder}/index.html, after {facts['minutes']} minutes")


def layer_cuts(depth: int) -> list[list[int]]:
    """Students of three sizes: an eighth, a quarter and half of the layers, evenly spaced, with the last one."""
    counts = [max(1, depth // part) for part in (8, 4, 2)]
    return [sorted({depth - 1 - round(step * (depth - 1) / max(1, n - 1)) for step in range(n)}) for n in counts]


def within_clap_tolerance(share: float, most: float) -> str:
    """Whether a share is at most so much."""
    return f"{HOLDS if share <= most else FAILS} ({share:.3f})"


def _plan(decoder: str) -> dict[str, Any]:
    """The paper's plan with another precision of the decoder."""
    return {**PLANS["paper"], "name": f"paper-{decoder}", "default": decoder}


def _state(name: str) -> str | None:
    run = RunStore(open_store(), name)
    return str(summary(run)["state"]) if run.exists() else None


_NOTE = (
    "Distances differ where their 95 % intervals do not overlap; CLAP scores, which are of the same captions, where "
    "the interval of the paired difference does not hold 0; times where all runs of one are longer. Claims under "
    "`beyond` are not the paper's. Nothing was tuned to make a claim hold."
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
