"""Models in other layouts: `tmctl models convert` writes what every command reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import sentencepiece
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from jobs.cli.main import app
from tests.tiny import CAPTIONS, write_tiny_musicgen
from tinymusician.errors import ModelError
from tinymusician.models.checkpoint_files import check_checkpoint
from tinymusician.models.musicgen import load_musicgen, load_tokenizer


@pytest.fixture
def folder(tiny_musicgen: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_musicgen, tmp_path / "model"))


def convert(*words: object) -> str:
    ended = CliRunner().invoke(app, ["models", "convert", *map(str, words)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


def pickle_weights(folder: Path, **more: object) -> dict[str, torch.Tensor]:
    """Replace a model's safetensors by a pickle, in which a tied embedding is there twice."""
    tensors = {name: torch.from_numpy(value) for name, value in load_file(folder / "model.safetensors").items()}
    tensors["text_encoder.encoder.embed_tokens.weight"] = tensors["text_encoder.shared.weight"]
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, **more}, folder / "pytorch_model.bin")
    return tensors


def test_pickled_weights(folder: Path, tmp_path: Path) -> None:
    tensors = pickle_weights(folder)
    assert "109 tensors" not in convert(folder, tmp_path / "new")
    loaded = load_musicgen(str(tmp_path / "new")).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    assert not (tmp_path / "new" / "pytorch_model.bin").exists()


def test_a_pickle_with_code_is_refused_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    pickle_weights(folder, code=Path("x"))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is no file of tensors"):
        convert(folder, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_weights_as_a_trainer_saves_them(folder: Path, tmp_path: Path) -> None:
    tensors = pickle_weights(folder)
    torch.save({"state_dict": tensors, "step": 3}, folder / "pytorch_model.bin")
    convert(folder, tmp_path / "new")
    assert torch.equal(
        load_musicgen(str(tmp_path / "new")).decoder.lm_heads[0].weight, tensors["decoder.lm_heads.0.weight"]
    )


@pytest.mark.parametrize("content", [{"step": 3}, [1], {"a": {"b": torch.zeros(1)}}])
def test_a_pickle_without_tensors(folder: Path, tmp_path: Path, content: object) -> None:
    pickle_weights(folder)
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is no file of tensors alone"):
        convert(folder, tmp_path / "new")


@pytest.mark.parametrize(
    ("config", "message"), [("{", "adapter_config.json cannot be read"), ("{}", "names no base model")]
)
def test_damaged_adapters(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(config)
    with pytest.raises(ModelError, match=message):
        convert(tmp_path / "adapter", tmp_path / "new")


def test_an_adapter_of_an_older_peft(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "band-large"}')
    (tmp_path / "adapter" / "adapter_model.bin").touch()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors; save it again with peft"):
        convert(tmp_path / "adapter", tmp_path / "new")


def test_a_sentencepiece_tokenizer(folder: Path, tmp_path: Path) -> None:
    """The ids are those of SentencePiece itself, and the end of the text."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    (tmp_path / "words.txt").write_text("\n".join(CAPTIONS * 20))
    training = f"--input={tmp_path}/words.txt --model_prefix={folder}/spiece --vocab_size=28 --pad_id=0 --eos_id=1"
    sentencepiece.SentencePieceTrainer.train(f"{training} --unk_id=2 --bos_id=-1 --minloglevel=2")
    assert "the tokenizer is tokenizer.json" in convert(folder, tmp_path / "new")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    tokenizer = load_tokenizer(str(tmp_path / "new"))
    assert tokenizer(CAPTIONS)["input_ids"] == [[*ids, 1] for ids in pieces.encode(CAPTIONS)]


def adapter(folder: Path, base: str, seed: int = 0) -> Path:
    """A LoRA adapter with random factors, named after its base model."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    adapted = peft.get_peft_model(load_musicgen(base), config)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder)
    return folder


def test_an_adapter_is_merged(tiny_musicgen: Path, tmp_path: Path) -> None:
    """W + (alpha / r) B A (Hu et al., arXiv 2106.09685, section 4.1), in float64."""
    source = adapter(tmp_path / "adapter", str(tiny_musicgen))
    with pytest.raises(ModelError, match="LoRA adapter alone; `tmctl models convert"):
        check_checkpoint(source)
    assert "merged into" in convert(source, tmp_path / "new")
    factors = load_file(source / "adapter_model.safetensors")
    before = load_musicgen(str(tiny_musicgen)).state_dict()
    changed = 0
    for name, value in load_musicgen(str(tmp_path / "new")).state_dict().items():
        expected = before[name].numpy().astype(np.float64)
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{prefix}A.weight" in factors:
            expected += 3 / 2 * factors[f"{prefix}B.weight"].astype(np.float64) @ factors[f"{prefix}A.weight"]
            changed += 1
        np.testing.assert_allclose(value.numpy(), expected, atol=1e-6)
    assert changed == 4 * (2 + 1)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_adapter_of_another_model_is_refused(tiny_musicgen: Path, tmp_path: Path) -> None:
    other = write_tiny_musicgen(tmp_path / "other", layers=2)
    source = adapter(tmp_path / "adapter", str(other))
    with pytest.raises(ModelError, match=r"does not fit .*tiny"):
        convert(source, tmp_path / "new", "--base", tiny_musicgen)
    (tensors := load_file(source / "adapter_model.safetensors")).popitem()
    save_file(tensors, source / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="1 tensors differ, such as"):
        convert(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_converted(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has nothing to convert"):
        convert(folder, tmp_path / "new")
    with pytest.raises(ModelError, match="exists; give the path of a new folder"):
        convert(folder, folder)
    with pytest.raises(ModelError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "new")
