"""GGUF files of Llamas: weights against the model that was written, tokens against the tokenizer that was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from jobs.cli.main import app
from tinymusician.errors import ModelError
from tinymusician.models.audio_lm import LanguageModelShape, new_lm
from tinymusician.models.gguf import convert_gguf
from tinymusician.models.pretrained_lm import llama_shape, load_language_model

SHAPE = LanguageModelShape(
    vocabulary=280, width=32, layers=2, heads=4, key_value_heads=2, feed_forward=64, rope_theta=500.0, end=2
)
TEXTS = ("Which key has 120 beats?", "über 1887, naïve  spaces\n", "the tune in the key of D")
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names of transformers, and llama.cpp's."""


def small_lm() -> torch.nn.Module:
    torch.manual_seed(0)
    return new_lm(SHAPE).eval()


def small_tokenizer() -> Tokenizer:
    """A tokenizer of SmolLM's kind: digits one by one, then bytes."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    return tokenizer


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a head in llama.cpp's order: the two channels that rotate together are neighbours."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    path: Path,
    pre: str = "smollm",
    architecture: str = "llama",
    precision: str = "F32",
    merges: list[str] | None = None,
    change: Callable[[gguf.GGUFWriter], object] = id,
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(SHAPE.positions)
    writer.add_embedding_length(SHAPE.width)
    writer.add_block_count(SHAPE.layers)
    writer.add_feed_forward_length(SHAPE.feed_forward)
    writer.add_head_count(SHAPE.heads)
    writer.add_head_count_kv(SHAPE.key_value_heads)
    writer.add_rope_freq_base(SHAPE.rope_theta)
    writer.add_rope_dimension_count(SHAPE.width // SHAPE.heads)
    writer.add_layer_norm_rms_eps(SHAPE.norm_epsilon)
    writer.add_vocab_size(SHAPE.vocabulary)
    content = json.loads(small_tokenizer().to_str())
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index < 3 else 1 for index in range(len(tokens))])
    writer.add_token_merges(merges or [" ".join(merge) for merge in content["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(SHAPE.end)
    kind = gguf.GGMLQuantizationType[precision]
    for name, value in small_lm().state_dict().items():
        if name == "lm_head.weight":
            continue
        array = value.numpy()
        if name.endswith("q_proj.weight"):
            array = interleaved(array, SHAPE.heads)
        if name.endswith("k_proj.weight"):
            array = interleaved(array, SHAPE.key_value_heads)
        if array.ndim == 2:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), array)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, *rest = name.split(".")
        return f"blk.{layer}.{NAMES['.'.join(rest[:-1])]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


@pytest.mark.parametrize(("precision", "tolerance"), [("F32", 2e-3), ("Q8_0", 0.02)])
def test_converted_model_computes_what_was_written(tmp_path: Path, precision: str, tolerance: float) -> None:
    """float32 weights within float16's rounding; in eight bits within theirs."""
    write_gguf(tmp_path / "m.gguf", precision=precision)
    result = CliRunner().invoke(app, ["models", "convert", str(tmp_path / "m.gguf"), str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    loaded = load_language_model(str(tmp_path / "new"))
    assert replace(loaded.shape, norm_epsilon=SHAPE.norm_epsilon) == SHAPE
    assert loaded.shape.norm_epsilon == pytest.approx(SHAPE.norm_epsilon)  # a float32 in the file
    again = new_lm(loaded.shape).eval()
    again.load_state_dict(loaded.weights)
    ids = torch.tensor([[5, 9, 70, 200, 3]])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, small_lm()(ids).logits, atol=tolerance, rtol=0)


def test_converted_tokenizer_splits_digits_and_knows_control_tokens(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    convert_gguf(tmp_path / "m.gguf", tmp_path / "new")
    tokenizer, expected = load_language_model(str(tmp_path / "new")).tokenizer, small_tokenizer()
    for text in (*TEXTS, "<|im_start|>user 42<|im_end|>"):
        assert tokenizer.encode(text).ids == expected.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("120").tokens == ["1", "2", "0"]


def test_files_that_are_no_llama_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    write_gguf(tmp_path / "gemma.gguf", architecture="gemma")
    write_gguf(tmp_path / "qwen.gguf", pre="qwen2")
    for name, message in (
        ("text", "is no GGUF file"),
        ("gemma", "general.architecture = 'gemma'; 'llama' is needed"),
        ("qwen", "tokenizer.ggml.pre = 'qwen2': only smollm, gpt-2 are converted"),
    ):
        with pytest.raises(ModelError, match=message):
            convert_gguf(tmp_path / f"{name}.gguf", tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_tokens_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    for number, merges in enumerate((["together"], ["no such", "tokens here"])):
        write_gguf(tmp_path / f"{number}.gguf", merges=merges)
        with pytest.raises(ModelError, match="its tokens do not fit together"):
            convert_gguf(tmp_path / f"{number}.gguf", tmp_path / "new")


@pytest.mark.parametrize(("option", "value"), [("--base", "band-mu"), ("--tokenizer", "tokenizer.json")])
def test_options_without_effect_are_refused(tmp_path: Path, option: str, value: str) -> None:
    write_gguf(tmp_path / "m.gguf")
    command = ["models", "convert", str(tmp_path / "m.gguf"), str(tmp_path / "new"), option, value]
    assert f"{option} {value}: is for" in str(CliRunner().invoke(app, command).exception)


def test_what_lies_beside_the_file_is_not_read(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/no/such/model", "peft_type": "LORA"}')
    (tmp_path / "config.json").write_text("no JSON")
    assert convert_gguf(tmp_path / "m.gguf", tmp_path / "new") > 0


def test_tokenizers_that_change_every_text_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    convert_gguf(tmp_path / "m.gguf", tmp_path / "new")
    tokenizer = small_tokenizer()
    tokenizer.enable_padding(pad_id=1)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "new" / "tokenizer.json"))
    loaded = load_language_model(str(tmp_path / "new")).tokenizer
    assert [len(each.ids) for each in loaded.encode_batch(["1", "1234"])] == [1, 4]
    tokenizer.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer.save(str(tmp_path / "new" / "tokenizer.json"))
    with pytest.raises(ModelError, match="adds special tokens to every text"):
        load_language_model(str(tmp_path / "new"))


def test_files_that_lack_something_or_have_more_are_refused(tmp_path: Path) -> None:
    """transformers would give random values to missing tensors, and ignore keys and tensors that it does not know."""
    changes: dict[str, Callable[[gguf.GGUFWriter], object]] = {
        "lacks": lambda writer: writer.tensors[0].pop("blk.1.attn_q.weight"),
        "bias": lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.ones(32, np.float32)),
        "untied": lambda writer: writer.add_tensor("output.weight", np.ones((280, 32), np.float32)),
        "scaled": lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR),
        "layers": lambda writer: writer.kv_data[0].pop("llama.block_count"),
        "epsilon": lambda writer: writer.kv_data[0].pop("llama.attention.layer_norm_rms_epsilon"),
        "words": lambda writer: writer.kv_data[0].pop("tokenizer.ggml.model"),
    }
    for name, message in (
        ("lacks", r"1 of 20 tensors are missing, such as blk\.1\.attn_q\.weight"),
        ("bias", r"has not, such as blk\.0\.attn_q\.bias"),
        ("untied", r"has not, such as output\.weight"),
        ("scaled", r"llama\.rope\.scaling\.type is set"),
        ("layers", r"llama\.block_count = None; a positive whole number is needed"),
        ("epsilon", "layer_norm_rms_epsilon = None; a positive number is needed"),
        ("words", r"tokenizer\.ggml\.model = None; 'gpt2'"),
    ):
        write_gguf(tmp_path / f"{name}.gguf", change=changes[name])
        with pytest.raises(ModelError, match=message):
            convert_gguf(tmp_path / f"{name}.gguf", tmp_path / "new")


def test_weights_that_are_no_numbers_leave_no_folder(tmp_path: Path) -> None:
    def overflow(writer: gguf.GGUFWriter) -> None:
        writer.tensors[0]["output_norm.weight"].tensor[3] = 1e8  # infinite in float16

    write_gguf(tmp_path / "m.gguf", change=overflow)
    result = CliRunner().invoke(app, ["models", "convert", str(tmp_path / "m.gguf"), str(tmp_path / "new")])
    assert isinstance(result.exception, ModelError)
    assert not (tmp_path / "new").exists()


def test_cut_file_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    content = (tmp_path / "m.gguf").read_bytes()
    for length in (len(content) // 2, len(content) - 100):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            convert_gguf(tmp_path / "cut.gguf", tmp_path / "new")


@pytest.mark.parametrize("content", ["", "no JSON", "[1]", '{"model_type": "llama", "hidden_size": [2]}', None])
def test_dry_run_says_what_is_wrong_with_a_language_model(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "lm").mkdir()
    if content is not None:
        (tmp_path / "lm" / "config.json").write_text(content)
    value = f"understand.language_model.model={tmp_path / 'lm'}"
    result = CliRunner().invoke(app, ["submit", "understand", "band-mu-smol", "--dry-run", "--set", value])
    assert isinstance(result.exception, ModelError)
    assert "config.json" in str(result.exception)


def test_llamas_that_compute_something_else_are_refused() -> None:
    config = LlamaForCausalLM.config_class(tie_word_embeddings=True).to_dict()
    assert llama_shape(config, "m").layers == 32
    for change, message in (
        ({"model_type": "qwen2"}, "is of type 'qwen2'; llama is needed"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False; True is needed"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'; 'silu' is needed"),
        ({"head_dim": 80}, "head_dim = 80"),
        ({"eos_token_id": None}, "eos_token_id = None"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ({"num_key_value_heads": 5}, "num_key_value_heads = 5; they must divide"),
        ({"rope_theta": "x"}, "rope_theta = 'x'|is damaged"),
        ({"hidden_size": None}, "hidden_size = None|is damaged"),
        ({"eos_token_id": 99_999}, "eos_token_id = 99999; a token of its 32000 is needed"),
    ):
        with pytest.raises(ModelError, match=message):
            llama_shape(config | change, "m")
