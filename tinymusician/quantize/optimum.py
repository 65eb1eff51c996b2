"""The optimum format: Optimum's export and file names, for transformers.js and other clients of that layout.

    config.json …                              the model's configuration and tokenizer, as transformers keeps them
    onnx/text_encoder.onnx                     onnx/decoder_model_merged.onnx   first step and later ones in one file
    onnx/encodec_decode.onnx                   onnx/build_delay_pattern_mask.onnx

Optimum writes the decoder twice, without and with a past; its merge shares the weights of both. Plans are the same as
for the fused format: a node's group follows from its name.
"""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tinymusician.codebooks import delay, inputs_for
from tinymusician.errors import ModelError
from tinymusician.models.protocols import Tokenizer
from tinymusician.quantize.apply import quantize_model, quantize_uniformly, quietly
from tinymusician.quantize.graph import save
from tinymusician.quantize.precision import PrecisionPlan
from tinymusician.runtime.rollout import Floats, ForcedBatch

DECODERS = ("decoder_model", "decoder_with_past_model")
_DECODER_GROUPS = (
    (r"layers\.\d+/encoder_attn/[kv]_proj", "cross"),
    (r"enc_to_dec_proj", "cross"),
    (r"layers\.\d+", None),
    (r"lm_heads\.\d+", None),
    (r"embed_", "embeddings"),
)


def export_optimum(model: Path, folder: Path) -> None:
    """Export the MusicGen in the local folder `model` with Optimum, in float32, into `folder`.

    Raises:
        ModelError: Optimum cannot export it.
    """
    from optimum.exporters.onnx import main_export

    try:
        with quietly():
            main_export(str(model), output=folder, task="text-to-audio", do_validation=False)
    except Exception as error:  # Optimum and torch's exporter raise many types for unknown models
        raise ModelError(f"model {model}: Optimum cannot export it ({' '.join(str(error).split())[:200]})") from error


def apply_to_optimum(plan: PrecisionPlan, source: Path, target: Path) -> None:
    """Write Optimum's float32 files in `source`, quantized by `plan`, into `target`, with the two decoders merged."""
    from optimum.onnx import merge_decoders

    (target / "onnx").mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".txt", ".model"):
            shutil.copyfile(path, target / path.name)
        elif path.suffix == ".onnx":
            _quantize(plan, path, target / "onnx" / path.name)
    decoders = [target / "onnx" / f"{name}.onnx" for name in DECODERS]
    merge_decoders(*decoders, save_path=target / "onnx" / "decoder_model_merged.onnx", strict=False)
    for path in decoders:
        path.unlink()
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)


def group_in_optimum(graph: str, node: str) -> str:
    """The plan's group of a node of one of Optimum's graphs."""
    if graph == "text_encoder":
        return "text_embedding" if "shared" in node else "text"
    if graph not in DECODERS:
        return "codec"
    for pattern, group in _DECODER_GROUPS:
        if match := re.search(pattern, node):
            return group or match[0]
    raise ModelError(f"{graph}: node {node} is in no group of the precision plan")


def optimum_logits(folder: Path, tokenizer: Tokenizer, sequences: ForcedBatch) -> Floats:
    """The merged decoder's logits along the sequences, [S, R, K, V]: step 0 without a past, the others with it."""
    import onnxruntime

    def open_(name: str) -> Any:
        return onnxruntime.InferenceSession(str(folder / "onnx" / f"{name}.onnx"), providers=["CPUExecutionProvider"])

    text, decoder = open_("text_encoder"), open_("decoder_model_merged")
    encoded = tokenizer(sequences.prompts, padding=True, truncation=True, return_tensors="np")
    feeds = {
        "input_ids": encoded["input_ids"].astype(np.int64),
        "attention_mask": encoded["attention_mask"].astype(np.int64),
    }
    (states,) = text.run(None, feeds)
    mask = feeds["attention_mask"]
    states = states * mask[..., None].astype(np.float32)
    vocabulary = int(decoder.get_outputs()[0].shape[2])
    inputs = inputs_for(delay(sequences.codes, vocabulary), vocabulary)
    if sequences.null:
        states, mask = np.concatenate([states, 0 * states]), np.concatenate([mask, 0 * mask])
        inputs = np.concatenate([inputs, inputs])
    return _along(decoder, inputs, {"encoder_hidden_states": states, "encoder_attention_mask": mask})


def optimum_wave(folder: Path, sequences: ForcedBatch) -> Floats:
    """The codec's wave of the first sequence, [T · hop]."""
    import onnxruntime

    path = folder / "onnx" / "encodec_decode.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (wave,) = session.run(None, {"audio_codes": sequences.codes[None, :1]})
    return np.asarray(wave[0, 0], np.float32)


def _along(decoder: Any, inputs_RKS: Any, conditions: dict[str, Any]) -> Floats:
    rows, num_codebooks, steps = inputs_RKS.shape
    past = {value.name: value.shape for value in decoder.get_inputs() if value.name.startswith("past_key_values")}
    names = [value.name for value in decoder.get_outputs()]
    feeds = {name: np.zeros((rows, shape[1], 1, shape[3]), np.float32) for name, shape in past.items()}
    feeds |= conditions
    logits = []
    for step in range(steps):
        feeds |= {
            "input_ids": inputs_RKS[:, :, step].reshape(rows * num_codebooks, 1),
            "use_cache_branch": np.array([step > 0]),
        }
        values = dict(zip(names, decoder.run(None, feeds), strict=True))
        logits.append(values["logits"].reshape(rows, num_codebooks, -1))
        for name, value in values.items():
            # From the second step on, the branch with a past gives empty keys and values of the text: those stay.
            if name.startswith("present") and (step == 0 or ".decoder." in name):
                feeds[name.replace("present", "past_key_values")] = value
    return np.stack(logits)


def _quantize(plan: PrecisionPlan, source: Path, target: Path) -> None:
    if source.stem == "build_delay_pattern_mask":
        shutil.copyfile(source, target)
    elif plan.uniform_int8:
        quantize_uniformly(source, target)
    else:
        save(quantize_model(plan, onnx.load(str(source)), partial(group_in_optimum, source.stem)), target)
