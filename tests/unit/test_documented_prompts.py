"""Prompts in documents, help and the page consist of words that the house band knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tinymusician.models.musicgen import model_location

ROOT = Path(__file__).parents[2]
FILES = [
    *(ROOT / name for name in ("README.md", "jobs/cli/generate.py", "serve/api.py", "serve/schemas.py")),
    *(ROOT / name for name in ("serve/page/main.js", "serve/page/index.html", "jobs/examples/demo.py")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PATTERNS = (
    r"generate \"([^\"…]+)\"",
    r"--negative-prompt \"([^\"]+)\"",
    r"--section ['\"]\d+:([^'\"]+)['\"]",
    r"\"(?:negative_)?prompt\": \"([^\"]+)\"",
    r"GenerationRequest\(\"([^\"]+)\"",
    r"placeholder=\"(a [^\"]+)\"",
    r"\[?'(an? [a-z]+ [^'\n]+)',",
    r"^    \"(an? [a-z]+ [^\"\n]+)\",$",
)


def prompts_of(path: Path) -> list[str]:
    text = path.read_text("utf-8")
    return [prompt for pattern in PATTERNS for prompt in re.findall(pattern, text, re.MULTILINE)]


def test_patterns_find_prompts_of_every_kind() -> None:
    """A pattern that finds nothing would let unknown words pass."""
    texts = [path.read_text("utf-8") for path in FILES]
    assert all(any(re.search(pattern, text, re.MULTILINE) for text in texts) for pattern in PATTERNS)


@pytest.mark.parametrize("path", [path for path in FILES if prompts_of(path)], ids=lambda path: path.name)
def test_examples_use_the_vocabulary(path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model_location("band-small") / "tokenizer.json"))
    unknown = {prompt: tokenizer.encode(prompt).tokens for prompt in prompts_of(path)}
    assert {prompt: tokens for prompt, tokens in unknown.items() if "<unk>" in tokens} == {}
