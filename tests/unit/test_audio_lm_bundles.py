"""What is written about a bundle that answers questions: a window that its graph can read, and its measured cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_question_answerer import QUESTIONS, TOKENIZER, new_model, wave, write_bundle
from tinymusician.errors import EngineError, ModelError
from tinymusician.quantize.audio_lm_bundle import BundleFacts, write_graphs, write_manifest
from tinymusician.quantize.precision import load_plan
from tinymusician.runtime.measure_answering import measure_answering
from tinymusician.runtime.question_answerer import QuestionAnswerer


def test_a_window_is_one_block_of_the_encoder(tmp_path: Path) -> None:
    """62 columns of 160 ms; 10 s are one column more."""
    model = new_model()
    write_graphs(model, load_plan("float32"), TOKENIZER.to_str(), tmp_path)
    facts = BundleFacts("tiny-mu", 9.92, QUESTIONS, {}, {}, "Apache-2.0", {})
    write_manifest(model, load_plan("float32"), tmp_path, facts)
    QuestionAnswerer(tmp_path).read(wave(9.92))
    with pytest.raises(ModelError, match="bundle tiny-mu: a window has 63 columns; the encoder's graph reads 62"):
        write_manifest(model, load_plan("float32"), tmp_path, facts._replace(window_seconds=10.0))


def test_cost_is_measured_in_a_new_process(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", new_model(), load_plan("float32"))
    cost = measure_answering(bundle)
    assert cost.peak_memory_bytes > sum(path.stat().st_size for path in bundle.iterdir())
    with pytest.raises(EngineError, match="bundle: does not run"):
        measure_answering(bundle / "none")
