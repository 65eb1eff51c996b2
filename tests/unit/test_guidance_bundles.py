"""Bundles of guidance-conditioned students, against transformers' `generate`."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from jobs.quantize.workspace import QuantizationWorkspace
from jobs.worker.context import WorkerContext
from tests.bundles import write_bundle
from tests.generated import generated
from tests.guidance_bundles import guidance_student, write_guidance_bundle
from tests.tiny import CAPTIONS
from tinymusician.artifacts.run_state import RunRecord, now
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import BundleError, ModelError, RecipeError, RequestError
from tinymusician.evaluate.generators import OnnxGenerator, SamplingSettings, TorchGenerator
from tinymusician.models.conditional_decoder import guidance_condition
from tinymusician.models.guidance import add_guidance_conditioning
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.models.saving import save_musicgen
from tinymusician.quantize.apply import apply_plan
from tinymusician.quantize.parity import ReferenceOutputs, measure_fused
from tinymusician.quantize.precision import PrecisionPlan, packaged_plan
from tinymusician.recipe import load_recipe
from tinymusician.runtime.bundle import Bundle, read_manifest
from tinymusician.runtime.generator import GenerationRequest, MusicGenerator, load_generator
from tinymusician.runtime.rollout import ForcedBatch

PROMPT = CAPTIONS[0]
PLANS = {
    "float32": packaged_plan("float32"),
    "int8": packaged_plan("int8"),
    "cross in int4": PrecisionPlan(name="int4", default="float32", groups={"cross": "int4"}),
}


@pytest.fixture(scope="module")
def student(tiny_musicgen: Path) -> Any:
    return guidance_student(str(tiny_musicgen), loudness=10.0)


@pytest.fixture(scope="module")
def folder(student: Any, tiny_musicgen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("told")
    write_guidance_bundle(student, tiny_musicgen / "tokenizer.json", folder, seconds=1.0)
    return folder


@pytest.fixture(scope="module")
def generator(folder: Path) -> MusicGenerator:
    return load_generator(folder, threads=1)


def embedding(student: Any, scale: float) -> Any:
    """The embedding of a scale of 1 to 5, in NumPy and float64."""
    weights = {name: value.double().numpy() for name, value in student.guidance_embedding.state_dict().items()}
    angles = (scale - 1) / 4 * math.pi * np.arange(1, 9)
    x = weights["first.weight"] @ np.concatenate([np.sin(angles), np.cos(angles)]) + weights["first.bias"]
    return weights["last.weight"] @ (x / (1 + np.exp(-x))) + weights["last.bias"]


def in_one_pass(student: Any, folder: Path, scale: float, frames: int) -> Any:
    """The codes of transformers' `generate` without guidance, from text states with the embedding added."""
    text = load_tokenizer(str(folder))([PROMPT], return_tensors="pt")
    with torch.no_grad():
        states = student.text_encoder(**text).last_hidden_state + torch.from_numpy(embedding(student, scale)).float()
    inputs = {"encoder_outputs": BaseModelOutput(states), "attention_mask": text["attention_mask"]}
    return generated(student, frames, **inputs, guidance_scale=1, do_sample=False)[0]


def test_greedy_codes_equal_transformers_at_every_scale(
    student: Any, generator: MusicGenerator, tiny_musicgen: Path
) -> None:
    result = []
    for scale in (1.0, 2.7, 5.0):
        request = generator.request(GenerationRequest(PROMPT, seconds=0.8, temperature=0, guidance=scale))
        assert request.uncond is None, "one pass"
        generation = generator.engine.start(request)
        generator.engine.run(generation)
        np.testing.assert_array_equal(generation.codes, in_one_pass(student, tiny_musicgen, scale, 40))
        result.append(generation.codes.tobytes())
    assert len(set(result)) == 3, "the scale matters"


def test_omitted_scale_is_the_default(generator: MusicGenerator) -> None:
    requests = [
        generator.request(GenerationRequest(PROMPT, guidance=scale)).text.arrays[0] for scale in (None, 3.0, 4.0)
    ]
    assert np.array_equal(requests[0], requests[1])
    assert not np.array_equal(requests[0], requests[2])


@pytest.mark.parametrize("scale", [0.9, 5.1])
def test_scales_outside_the_range(student: Any, generator: MusicGenerator, scale: float) -> None:
    with pytest.raises(RequestError, match=f"guidance {scale:g}: this model was distilled for 1 to 5"):
        generator.request(GenerationRequest(PROMPT, guidance=scale))
    ids = torch.ones(1, 2, dtype=torch.long)
    with pytest.raises(ModelError, match=f"guidance {scale:g}: .* was trained for 1 to 5"):
        guidance_condition(student, ids, ids, scale)


def test_range_limits_survive_float32_rounding(tiny_musicgen: Path) -> None:
    """1.3 in float32 is less than 1.3."""
    student = add_guidance_conditioning(load_musicgen(str(tiny_musicgen)), 1.3, 4.7)
    ids = torch.ones(2, 2, dtype=torch.long)
    assert guidance_condition(student, ids, ids, (1.3, 4.7)).states.shape == (2, 2, 16)


def test_one_pass_bundle_runs_one_pass(generator: MusicGenerator) -> None:
    with pytest.raises(RequestError, match=r"negative_prompt: .* this model has none"):
        generator.request(GenerationRequest(PROMPT, negative_prompt="noise"))


def test_model_and_bundle_agree(student: Any, folder: Path, tiny_musicgen: Path) -> None:
    ours, theirs = TorchGenerator(student, load_tokenizer(str(tiny_musicgen))), OnnxGenerator(folder, threads=1)
    codes = np.random.default_rng(0).integers(0, 16, (2, 4, 9))
    for scale in (1.0, 4.0):
        settings = SamplingSettings(seconds=0.4, guidance=scale, top_k=8, temperature=1.0)
        one, other = (generator.generate(CAPTIONS[:2], [1, 2], settings) for generator in (ours, theirs))
        for mine, its in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine.codes, its.codes)
        logits, others = (generator.forced(CAPTIONS[:2], codes, scale) for generator in (ours, theirs))
        torch.testing.assert_close(logits, others, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("plan", "most"), [("float32", 1e-6), ("int8", 0.05), ("cross in int4", 0.5)])
def test_parity_is_measured_at_the_scales(
    student: Any, folder: Path, tiny_musicgen: Path, tmp_path: Path, plan: str, most: float
) -> None:
    """In PyTorch and in the graphs, each sequence at its own scale; at swapped scales they are far apart."""
    codes = np.random.default_rng(0).integers(0, 16, (3, 4, 20))
    along = ForcedBatch(CAPTIONS[:3], codes, null=False, scales=(1.0, 3.0, 5.0))
    apply_plan(PLANS[plan], folder, tmp_path / plan)
    generator = MusicGenerator(Bundle(tmp_path / plan, read_manifest(folder)), 1)
    tokenizer = load_tokenizer(str(tiny_musicgen))
    parity = measure_fused(ReferenceOutputs(student, tokenizer, along), generator, tmp_path / plan)
    assert max(parity.kl) < most
    swapped = ForcedBatch(along.prompts, codes, null=False, scales=(5.0, 1.0, 3.0))
    far = ReferenceOutputs(student, tokenizer, swapped)
    far.sequences = along
    assert max(measure_fused(far, generator, tmp_path / plan).kl) > max(parity.kl) + 0.01


def test_manifest_and_graph_must_agree(student: Any, tiny_musicgen: Path, tmp_path: Path) -> None:
    sampling = {"one_pass": True, "guidance": 2.0, "guidance_range": (1.0, 5.0)}
    tokenizer = tiny_musicgen / "tokenizer.json"
    write_bundle(load_musicgen(str(tiny_musicgen)), tokenizer, tmp_path / "deaf", **sampling)
    with pytest.raises(BundleError, match=r"cross\.onnx is not a cross; it has no input guidance"):
        load_generator(tmp_path / "deaf")
    write_bundle(student, tokenizer, tmp_path / "not asked", one_pass=True, guidance=1.0)
    with pytest.raises(BundleError, match=r"cross\.onnx has a guidance input, .* no guidance_range"):
        load_generator(tmp_path / "not asked")


@pytest.mark.parametrize(
    ("sampling", "why"),
    [
        ({"guidance_range": [5, 1]}, "5 to 1: must hold guidance 3"),
        ({"guidance_range": [1, 2]}, "1 to 2: must hold guidance 3"),
        ({"one_pass": False}, "needs one_pass"),
        ({"guidance_range": None}, "guidance 3: 1 is needed with one_pass and no guidance_range"),
    ],
)
def test_manifests_with_impossible_defaults(folder: Path, tmp_path: Path, sampling: dict[str, Any], why: str) -> None:
    shutil.copytree(folder, tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "sampling": {**content["sampling"], **sampling}}))
    with pytest.raises(BundleError, match=why):
        read_manifest(tmp_path / "b")


class TestCompression:
    """The quantization of a guidance-conditioned student."""

    def compression(
        self, student: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: str
    ) -> QuantizationWorkspace:
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        save_musicgen(folder / "student", student, load_tokenizer(str(student.name_or_path)))
        recipe = load_recipe("band", (f"quantize.model={folder / 'student'}", "teacher.guidance_scale=2.5", *changes))
        store = LocalStore(folder / "store")
        run_record: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "versions": {}, "git": {}, "seeds": {}}
        record = RunRecord(id="q", kind="quantize", workers=1, created=now(), cluster="", submission="", **run_record)
        RunStore(store, "q").write_record(record)
        return QuantizationWorkspace(WorkerContext(store.url, "q", 0, 1, "cpu"))

    @pytest.mark.parametrize("count", [1, 2])
    def test_parity_covers_the_guidance_range(
        self, student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
    ) -> None:
        """At both ends of a range all sines are 0: a graph that has them wrong must not pass there."""
        compression = self.compression(student, tmp_path, monkeypatch)
        defaults = compression.defaults()
        assert (defaults.one_pass, defaults.guidance, defaults.guidance_range) == (True, 2.5, (1.0, 5.0))
        along = compression.sequences("test", count, 0.4)
        assert along.scales == ((3.0,) if count == 1 else (2.0, 4.0))
        reference = ReferenceOutputs(compression.model, compression.tokenizer, along)
        exact = measure_fused(reference, compression.float32_generator(), compression.exported)
        assert max(exact.kl) < 1e-6
        weight = student.guidance_embedding.first.weight
        wrong = copy.deepcopy(student)
        wrong.guidance_embedding.first.weight.data = torch.cat([-9 * weight[:, :8], weight[:, 8:]], 1)
        write_guidance_bundle(wrong, compression.exported / "tokenizer.json", tmp_path / "wrong", seconds=1.0)
        parity = measure_fused(reference, load_generator(tmp_path / "wrong", 1), tmp_path / "wrong")
        assert max(parity.kl) > 0.01

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ("quantize.format=optimum", "quantize.format = optimum: has no guidance input"),
            ("teacher.guidance_scale=6", r"teacher\.guidance_scale = 6: .* was distilled for 1 to 5"),
        ],
    )
    def test_impossible_shapes(
        self, student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, why: str
    ) -> None:
        with pytest.raises(RecipeError, match=why):
            self.compression(student, tmp_path, monkeypatch, change)


def test_manifest_without_a_range_omits_it(tiny_musicgen: Path, tmp_path: Path, folder: Path) -> None:
    """Players from before there were ranges refuse fields that they do not know."""
    write_bundle(load_musicgen(str(tiny_musicgen)), tiny_musicgen / "tokenizer.json", tmp_path)
    assert "guidance_range" not in json.loads((tmp_path / "manifest.json").read_text())["sampling"]
    assert json.loads((folder / "manifest.json").read_text())["sampling"]["guidance_range"] == [1.0, 5.0]
