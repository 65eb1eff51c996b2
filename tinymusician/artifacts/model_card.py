"""Renders a manifest as a model card in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinymusician.artifacts.lineage import backward, lineage_edges
from tinymusician.artifacts.manifest import Manifest
from tinymusician.markdown import markdown_table

_KINDS = {
    "student": "A language model, distilled from its teacher, with the teacher's text encoder and codec; transformers "
    "loads it.",
    "bundle": "ONNX graphs that `tmctl generate`, phones and browsers play; no torch is needed.",
    "optimum": "ONNX graphs in Optimum's layout, for transformers.js.",
    "audio-lm": "A model that answers questions about music, with its questions.",
    "audio-lm-bundle": "ONNX graphs that `tmctl ask` and the endpoint play; no torch is needed.",
    "pretrained": "The house band, trained from scratch.",
}
_DATA = (
    "The training data of its teacher. The house band was trained on rendered tunes of collections printed before "
    "1890; MusicGen on licensed music, which its own model card describes."
)


def model_card(manifest: Manifest, every: Sequence[Manifest]) -> str:
    """The card in Markdown; `every` are the manifests of the store, for the lineage."""
    recipe = manifest.recipe
    steps = backward(manifest.reference, lineage_edges(every))
    parts = [
        f"# {manifest.name}\n\n{recipe.get('description', '')}\n\n{_KINDS.get(manifest.kind, manifest.kind)}",
        markdown_table(
            ("", ""),
            [
                ("reference", f"`{manifest.reference}`"),
                ("created", f"{manifest.created:%Y-%m-%d %H:%M} UTC, run {manifest.lineage.get('run', '?')}"),
                ("size", f"{manifest.size / 1e6:.1f} MB in {len(manifest.files)} files"),
                ("licence", manifest.licence),
            ],
        ),
        "## Metrics\n\n" + markdown_table(("metric", "value"), _metrics(manifest.metrics)),
        "## Lineage\n\n" + markdown_table(("source", "result", "run"), [(s.source, s.derived, s.run) for s in steps]),
        f"## Data\n\n{_DATA}",
        "## Reproduction\n\n" + markdown_table(("item", "value"), _reproduction(manifest)),
    ]
    return "\n\n".join(parts)


def _metrics(metrics: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in metrics.items()]


def _reproduction(manifest: Manifest) -> list[tuple[str, str]]:
    lineage = manifest.lineage
    rows = [(f"recipe, {part}", str(content)) for part, content in manifest.recipe.items() if isinstance(content, dict)]
    rows += [(name, str(lineage[name])) for name in ("git", "seeds", "versions") if lineage.get(name)]
    return rows
