"""Jobs on a real Ray: the whole path, a real S3 store, and killed processes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from jobs.understand.generate_questions import QuestionSets
from tests.ray_cluster import BIN, Ray, settings, tmctl, tmctl_json
from tests.unit.test_runs import record
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore, Store
from tinymusician.house_band.question_texts import PHRASINGS
from tinymusician.models.audio_lm import LanguageModelShape
from tinymusician.models.shape import WEIGHTS
from tinymusician.recipe import load_recipe
from tinymusician.understand.benchmark import BenchmarkResult
from tinymusician.understand.questions import Question

pytestmark = pytest.mark.slow

TWO = ("--workers", "2")


def test_the_whole_path_on_s3_with_two_workers(ray: Ray, recipe: Path, s3_store: Store, tmp_path: Path) -> None:
    """Distil on two workers with ZeRO 2 into S3; everything that is promised of a run and its artifact is there."""
    run = tmctl_json(
        ray,
        s3_store,
        "submit",
        "distill",
        str(recipe),
        "--workers",
        "2",
        "--set",
        "training.zero_stage=2",
        "--name",
        "r1",
    )
    assert (run["id"], run["kind"], run["state"], run["workers"]) == ("r1", "distill", "SUCCEEDED", 2)
    metrics = run["metrics"]
    assert metrics["kl_final"] < 0.5 * metrics["kl_initial"]
    assert metrics["kl_final"] == pytest.approx(sum(metrics["kl_per_codebook"]) / 4, rel=1e-3)
    folder = RunStore(s3_store, "r1")
    record = folder.record()
    assert record.versions["deepspeed"]
    assert record.seeds == {"training": 0}
    assert record.recipe["training"]["zero_stage"] == 2
    assert "SUCCEEDED" in folder.log()
    assert folder.log().count("distill: from the beginning, 12 steps") == 1
    assert "\x1b" not in folder.log()
    assert s3_store.get(folder.key("training.png")).startswith(b"\x89PNG")
    assert any("tensorboard/distill/events" in entry.key for entry in s3_store.list("runs/r1/"))
    rows = [row for row in folder.metrics() if "loss" in row]
    names = {
        "loss/4",
        "kl/1",
        "agreement",
        "entropy",
        "gradient_norm",
        "learning_rate",
        "temperature",
        "alpha",
        "codes_per_second",
    }
    assert all(names <= set(row) for row in rows)

    manifest = tmctl_json(ray, s3_store, "artifacts", "show", run["artifact"])
    assert manifest["lineage"]["run"] == "r1"
    assert len(manifest["lineage"]["teacher_sha256"]) == 64
    assert "CC-BY-NC" in manifest["licence"]
    kinds = {one["digest"]: one["kind"] for one in tmctl_json(ray, s3_store, "artifacts", "list")}
    assert sorted(kinds.values()) == ["model", "student"], "the teacher, a folder here, was imported"
    assert kinds[manifest["digest"]] == "student"
    assert manifest["lineage"]["teacher"].startswith("input-teacher@sha256:")
    assert tmctl(ray, s3_store, "artifacts", "verify", "tiny").returncode == 0
    assert tmctl(ray, s3_store, "pull", "tiny", "--to", str(tmp_path / "out")).returncode == 0
    from transformers import MusicgenForConditionalGeneration

    student = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert student.config.decoder.num_hidden_layers == 2


def test_quantized_model_generates_audio(ray: Ray, recipe: Path, s3_store: Store, tmp_path: Path) -> None:
    """Two workers measure, one chooses; what was measured is not measured again; what fails the gate is not stored."""
    quantize = ["submit", "quantize", str(recipe), "--model", str(recipe.parent / "teacher"), *TWO]
    short = settings(("quantize.sequences=2", "quantize.seconds=0.4"))
    few = [*short, "--set", "quantize.block_size=16"]
    run = tmctl_json(ray, s3_store, *quantize, *few, "--name", "q1")
    assert run["state"] == "SUCCEEDED"
    figures = run["metrics"]
    assert max(figures["kl_per_codebook"]) <= 0.02
    assert figures["size"] < 0.6 * figures["float32_checkpoint_size"]
    folder = RunStore(s3_store, "q1")
    assert s3_store.get(folder.key("report.html")).count(b"data:image/png") == 2
    assert folder.log().count("measured layers.0 in int4") == 1
    manifest = tmctl_json(ray, s3_store, "artifacts", "show", "tiny-bundle")
    assert (manifest["kind"], manifest["lineage"]["run"]) == ("bundle", "q1")
    assert "CC-BY-NC" in manifest["licence"]

    wave = tmp_path / "out.wav"
    played = tmctl_json(ray, s3_store, "generate", "a slow fiddle reel", "--model", "tiny-bundle", "-o", str(wave))
    assert played["clips"][0]["seconds"] == 0.4
    assert wave.read_bytes()[:4] == b"RIFF"

    dearer = tmctl_json(ray, s3_store, *quantize, *few, "--set", "quantize.kl_budget=0.5", "--name", "q2")
    assert dearer["metrics"]["size"] < figures["size"]
    assert "measured layers" not in RunStore(s3_store, "q2").log()

    ended = tmctl(ray, s3_store, *quantize, *few, "--set", "quantize.thresholds.float32.kl=1e-30", "--name", "q3")
    assert ended.returncode == 1
    assert "float32 graphs: KL" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr
    kinds = [one["kind"] for one in tmctl_json(ray, s3_store, "artifacts", "list")]
    assert sorted(kinds) == ["bundle", "bundle", "model"]
    assert b"float32" in s3_store.get(RunStore(s3_store, "q3").key("report.html")), "what was refused has a report"

    other = settings(("quantize.format=optimum", "quantize.plan=paper"))
    band = ["submit", "quantize", str(recipe), "--model", "band-small"]  # Optimum's own inputs need a larger vocabulary
    tmctl_json(ray, s3_store, *band, *short, *other, "--name", "q4")
    files = {file["path"] for file in tmctl_json(ray, s3_store, "artifacts", "show", "tiny-optimum")["files"]}
    assert {"onnx/text_encoder.onnx", "onnx/decoder_model_merged.onnx", "onnx/encodec_decode.onnx"} <= files
    refused = tmctl(ray, s3_store, *quantize, *few, *other)
    assert "quantize.block_size=16: only plan adaptive reads it" in refused.stderr


def test_tunnel_to_a_cluster_is_not_this_machine(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a tunnel a cluster answers on loopback too, but its head names an address of another machine."""
    from ray.util.state.common import NodeState

    from jobs.launch.cluster import is_here

    assert is_here(ray.address)
    assert not is_here("http://head:8265")
    elsewhere = NodeState(
        node_id="1",
        node_ip="198.51.100.7",
        is_head_node=True,
        state="ALIVE",
        state_message=None,
        node_name="h",
        resources_total={},
        labels={},
    )
    monkeypatch.setattr("ray.util.state.list_nodes", lambda address, limit: [elsewhere])
    assert not is_here(ray.address)


def test_resume_through_a_tunnel_stays_on_its_cluster(
    ray: Ray, recipe: Path, store: LocalStore, tmp_path: Path
) -> None:
    """The head behind a loopback address is compared with the run's; both addresses had jobs of this user before."""
    environment = {name: value for name, value in ray.environment.items() if name != "TMCTL_CLUSTER"}
    environment["XDG_STATE_HOME"] = str(tmp_path)
    clusters = tmp_path / "tinymusician" / "clusters.txt"
    clusters.parent.mkdir()
    clusters.write_text(f"{ray.address}\nhttp://127.0.0.1:1\n")
    environment["TMCTL_STORE"], content = store.url, load_recipe(str(recipe)).model_dump(mode="json")
    for name, address, problem in (
        ("other", ray.address, "another cluster answers there now; open the tunnel to it again"),
        ("gone", "http://127.0.0.1:1", "no cluster answers there now"),
    ):
        run = RunStore(store, name)
        run.write_record(record(name, recipe=content, cluster=address, head_id="0" * 56))
        run.start()
        run.fail("lost")
        command = [str(BIN / "tmctl"), "submit", "distill", str(recipe), "--resume", name]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 1
        assert problem in ended.stderr


def test_distillation_in_bfloat16(ray: Ray, recipe: Path, store: LocalStore) -> None:
    """All stages: samples, training with a teacher in bfloat16, and the final report."""
    words = settings(("training.precision=bfloat16", "training.steps=12"))
    summary = tmctl_json(ray, store, "submit", "distill", str(recipe), *words, "--name", "half")
    assert summary["state"] == "SUCCEEDED", summary["message"]
    assert summary["metrics"]["kl_final"] < summary["metrics"]["kl_initial"]
    assert summary["metrics"]["sample_cross_entropy_teacher"] > 0
    assert len(RunStore(store, "half").record().head_id) > 20, "a resumed run compares it"


def test_unavailable_weights(ray: Ray, recipe: Path, store: LocalStore) -> None:
    changes = ("teacher.model=facebook/musicgen-small",)
    ended = tmctl(ray, store, "submit", "distill", str(recipe), *settings(changes), "--name", "n")
    assert ended.returncode == 1
    last = ended.stdout.strip().splitlines()
    assert len(last) == 1
    assert "model 'facebook/musicgen-small': is not in the cache, and the hub cannot be reached" in last[0]


def write_tunes(ray: Ray) -> None:
    """Made-up tunes in the cache, where the house band's are read; each has a melody of its own."""
    corpus = Path(ray.environment["XDG_CACHE_HOME"]) / "tinymusician" / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    rng, scale = np.random.default_rng(0), np.array([60, 62, 64, 65, 67, 69, 71, 72])
    facts = {"collection": "ryan", "kind": "reel", "tonic": 0, "mode": "major", "meter": "4/4"}
    splits, tunes = ("train", "validation", "test"), []
    for number in range(30):
        notes = [(index * 0.5, 0.5, int(pitch)) for index, pitch in enumerate(rng.choice(scale, 64))]
        title = f"song {'abcdefghij'[number // 3]}x"
        tunes.append({"title": title, "split": splits[number % 3], **facts, "notes": notes})
    (corpus / "tunes-by-family.json").write_text(json.dumps(tunes))


def test_pretraining_from_scratch(ray: Ray, store: LocalStore, tmp_path: Path) -> None:
    """Every stage of pretraining for a step or two, on made-up tunes: models that load."""
    write_tunes(ray)
    short: tuple[str, ...] = (
        "train_clips=12",
        "held_out_clips=10",
        "codec_steps=1",
        "codec_batch_size=2",
        "teacher_steps=2",
    )
    short += (
        "student_steps=2",
        "lm_batch_size=2",
        "clap_steps=2",
        "clap_batch_size=4",
        "tagger_steps=2",
        "tagger_batch_size=4",
    )
    values = tuple(f"pretrain.{value}" for value in short)
    run = tmctl_json(ray, store, "submit", "pretrain", "band", *settings(values), "--name", "p")
    assert run["state"] == "SUCCEEDED"
    assert set(run["metrics"]) == {"codec", "band-large", "band-small", "band-clap", "band-tagger"}
    assert run["metrics"]["codec"]["si_sdr/4"] > 0
    assert tmctl(ray, store, "pull", run["artifact"], "--to", str(tmp_path / "out")).returncode == 0
    from transformers import ClapModel, MusicgenForConditionalGeneration

    from tinymusician.house_band.tagger_model import BandTagger

    for name, layers in (("band-large", 8), ("band-small", 2)):
        model = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "out" / name)
        assert model.config.decoder.num_hidden_layers == layers
    assert ClapModel.from_pretrained(tmp_path / "out" / "band-clap").config.projection_dim == 128
    assert BandTagger.load(tmp_path / "out" / "band-tagger").width == 48


SHORT_UNDERSTANDING = (
    "understand.pretrain.steps=2",
    "understand.pretrain.finetune_steps=2",
    "understand.questions.band_limited_share=0.5",
    "understand.pretrain.batch_size=4",
    "understand.train.steps=2",
    "understand.train.text_only_steps=2",
    "understand.train.batch_size=4",
    "understand.questions.train_clips=60",
    "understand.questions.validation_clips=50",
    "understand.questions.test_clips=50",
    "understand.questions.choice_groups=3",
    "understand.questions.yes_no_pairs=2",
    "understand.questions.open_questions=2",
    "understand.questions.captions=2",
    "understand.questions.benchmark_groups=3",
    "understand.compress.accuracy_budget=1",
    "understand.compress.block_size=16",
    "training.batch_size=2",
    "training.precision=float32",
)


def test_understanding_from_scratch(ray: Ray, store: LocalStore, tmp_path: Path) -> None:
    """Every stage for two steps, on two workers; the artifact has a model that loads and the benchmark's questions."""
    write_tunes(ray)
    sizes = (
        "encoder.width=24",
        "encoder.layers=1",
        "encoder.heads=2",
        "encoder.feed_forward=24",
        "language_model.width=16",
        "language_model.layers=1",
        "language_model.feed_forward=16",
        "language_model.vocabulary=400",
        "train.language_steps=2",
    )
    values = (*(f"understand.{value}" for value in sizes), *SHORT_UNDERSTANDING)
    run = tmctl_json(ray, store, "submit", "understand", "band-mu", *settings(values), *TWO, "--name", "u")
    assert run["state"] == "SUCCEEDED"
    assert set(run["metrics"]["probe"]) == {"instrument", "tempo", "key", "mode"}
    result = RunStore(store, "u").report(BenchmarkResult)
    sets = RunStore(store, "u").measurement("questions", "all splits", QuestionSets)
    assert sets is not None
    assert (sets.test, sets.version) == (result.digest, result.version)
    stages = ["most frequent class", "random weights", "masked prediction", "fine-tuned"]
    assert [each.encoder for each in result.probes] == stages
    assert result.model.name == "band-mu"
    names = ["no audio", "silence", "noise", "another tune's audio", "most frequent answer", "text-only model"]
    (mucho,) = result.others
    for each in (result, mucho):
        assert [score.name for score in each.controls] == names
    assert mucho.model.overall.chance == 0.25
    assert result.reconstructed is not None
    assert tmctl(ray, store, "pull", run["artifact"], "--to", str(tmp_path / "out")).returncode == 0
    from tinymusician.models.audio_lm_files import load_audio_lm

    assert load_audio_lm(tmp_path / "out").shape.lm.layers == 1
    lines = (tmp_path / "out" / "hard.jsonl").read_text("utf-8").splitlines()
    questions = [Question.model_validate_json(line) for line in lines]
    assert len(questions) == result.model.overall.questions
    assert {"instrument", "tempo"} <= {question.attribute for question in questions}
    assert tmctl(ray, store, "pull", run["metrics"]["bundle"], "--to", str(tmp_path / "bundle")).returncode == 0
    soundfile.write(tmp_path / "clip.flac", np.random.default_rng(0).normal(0, 0.1, 110_250), 22_050)
    played = tmctl_json(ray, store, "ask", "--audio", str(tmp_path / "clip.flac"), "--model", str(tmp_path / "bundle"))
    assert (played["model"], played["audio_seconds"], played["windows"]) == ("band-mu", 5.0, 1)
    assert [answer["attribute"] for answer in played["answers"]] == list(PHRASINGS)


def test_models_from_elsewhere_are_trained_on(ray: Ray, store: LocalStore, tmp_path: Path) -> None:
    """The language model is an imported artifact; the result has its tokenizer, and no adapters beside its weights.

    The encoder is band-mu's, fine-tuned.
    """
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    write_tunes(ray)
    words = Tokenizer.from_file(str(WEIGHTS / "band-mu" / "tokenizer.json"))
    size = words.get_vocab_size()
    config = LlamaConfig(size, 32, 32, 1, 4, 2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "lm")
    words.save(str(tmp_path / "lm" / "tokenizer.json"))
    assert tmctl(ray, store, "artifacts", "import", str(tmp_path / "lm"), "--name", "small-lm").returncode == 0
    values = (
        "understand.language_model.model=small-lm",
        "understand.language_model.lora_rank=2",
        "understand.train.learning_rate=0.1",
        "understand.pretrain.finetune_pretrained=true",
    )
    run = tmctl_json(
        ray, store, "submit", "understand", "band-mu-smol", *settings((*values, *SHORT_UNDERSTANDING)), "--name", "l"
    )
    assert run["state"] == "SUCCEEDED"
    assert RunStore(store, "l").record().recipe["understand"]["language_model"]["model"].startswith("small-lm@sha256:")
    assert tmctl(ray, store, "pull", run["artifact"], "--to", str(tmp_path / "out")).returncode == 0
    from tinymusician.models.audio_lm_files import load_audio_lm

    loaded = load_audio_lm(tmp_path / "out")
    tuned, band_mu = loaded.audio_encoder.state_dict(), load_audio_lm(WEIGHTS / "band-mu").audio_encoder.state_dict()
    moved = {name: (tuned[name] - value).abs().max().item() for name, value in band_mu.items()}
    assert 0 < max(moved.values()) < 0.1
    assert loaded.shape.lm == LanguageModelShape(size, 32, 1, 4, 2, 32, 10_000.0, 2048, 1e-6, 0)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == words.to_str()
    trained = loaded.lm.state_dict()
    given = LlamaForCausalLM.from_pretrained(tmp_path / "lm").state_dict()
    changed = {name for name in given if not torch.allclose(given[name], trained[name], atol=1e-3)}
    assert changed == {f"model.layers.0.self_attn.{part}_proj.weight" for part in ("q", "v")}
