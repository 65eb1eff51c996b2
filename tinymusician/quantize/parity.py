"""Parity: compares a bundle with PyTorch in float32 along whole sequences, and finds where they diverge first.

Shapes as in `rollout`: S step, R row, K codebook, V vocabulary.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper

from tinymusician.codebooks import delay, inputs_for
from tinymusician.errors import ParityError
from tinymusician.models.conditional_decoder import ConditionedDecoder, TextCondition, encode_text, guidance_condition
from tinymusician.models.protocols import Musicgen, Tokenizer
from tinymusician.quantize.adaptive import snr
from tinymusician.quantize.results import ParityReport
from tinymusician.runtime.generator import MusicGenerator
from tinymusician.runtime.rollout import Floats, ForcedBatch, compare, rollout
from tinymusician.runtime.session import Array, Session


class ReferenceOutputs:
    """PyTorch's outputs on some sequences."""

    def __init__(self, model: Musicgen, tokenizer: Tokenizer, sequences: ForcedBatch) -> None:
        self.sequences = sequences
        pad = model.config.decoder.vocab_size
        inputs = torch.from_numpy(inputs_for(delay(sequences.codes, pad), pad))
        with torch.no_grad():
            text = tokenizer(sequences.prompts, padding=True, truncation=True, return_tensors="pt")
            ids, mask, scales = text["input_ids"], text["attention_mask"], sequences.scales
            conditional = guidance_condition(model, ids, mask, scales) if scales else encode_text(model, ids, mask)
            null = conditional.without_text()
            conditions = (conditional, null) if sequences.null else (conditional,)
            parts = [_run(model, inputs, condition) for condition in conditions]
            codes = torch.from_numpy(sequences.codes[:1])[None]
            self.wave: Floats = model.audio_encoder.decode(codes, [None]).audio_values[0, 0].numpy()
        self.logits: Floats = np.concatenate([logits for logits, _ in parts], axis=1)
        self.hidden: Floats = parts[0][1]


def _run(model: Musicgen, inputs: torch.Tensor, condition: TextCondition) -> tuple[Floats, Floats]:
    """Logits [S, N, K, V], and the first row's output of every layer [layers, S, D]."""
    seen: list[Floats] = []
    layers = model.decoder.model.decoder.layers
    hooks = [layer.register_forward_hook(lambda m, i, output: seen.append(output[0][0].numpy())) for layer in layers]
    logits = ConditionedDecoder(model)(inputs, condition.states, condition.mask).permute(2, 0, 1, 3)
    for hook in hooks:
        hook.remove()
    return logits.contiguous().numpy(), np.stack(seen)


def measure(
    reference: ReferenceOutputs, logits: Floats, wave: Floats, errors: npt.NDArray[np.float64] | None = None
) -> ParityReport:
    """The parity of graphs with these logits and this wave, in the distribution that codes are sampled from.

    `errors` are those of the layers, [layers, S], if the graphs expose their outputs.
    """
    sampled = reference.sequences.sampled
    difference = compare(sampled(reference.logits), sampled(logits))
    first_step, first_layer = -1, -1
    if errors is not None and len(off := np.argwhere(~(errors.T <= 0.01))):
        first_step, first_layer = (int(value) for value in off[0])
    return ParityReport(
        kl=difference.by_codebook,
        agreement=np.nanmean(difference.agreement, axis=0).tolist(),
        by_part=_by_part(difference.kl),
        worst_logit=float(np.nanmax(difference.gap)),
        worst_step=int(np.nanargmax(np.nanmax(difference.gap, axis=1))),
        first_layer=first_layer,
        first_step=first_step,
        layer_errors=[] if errors is None else errors.max(1).tolist(),
        codec_snr=min(200.0, snr(reference.wave, wave)),
    )


def measure_fused(reference: ReferenceOutputs, generator: MusicGenerator, folder: Path) -> ParityReport:
    """The parity of the fused graphs in `folder`, loaded as `generator`."""
    sequences = reference.sequences
    wave = generator.codec(sequences.codes[0])
    return measure(reference, rollout(generator, sequences), wave, layer_errors(reference, generator, folder))


def check(parity: ParityReport, name: str, kl: float, agreement: float, codec_snr: float) -> None:
    """Refuse graphs with too much KL, too low agreement or too low an SNR of the codec (dB).

    Raises:
        ParityError: they are refused; the message says where they diverge from PyTorch first.
    """
    first = f"first off at layer {parity.first_layer}, step {parity.first_step}" if parity.first_layer >= 0 else ""
    where = f"{first or 'no layer is off by a hundredth'}; worst at step {parity.worst_step}"
    if not max(parity.kl) <= kl:
        raise ParityError(f"{name}: KL {max(parity.kl):.3g} nats per code; at most {kl:g} is allowed ({where})")
    if not min(parity.agreement) >= agreement:
        lowest = min(parity.agreement)
        raise ParityError(f"{name}: {lowest:.4f} of the likeliest codes agree; at least {agreement:g} must ({where})")
    if not parity.codec_snr >= codec_snr:
        raise ParityError(f"{name}: the codec's SNR is {parity.codec_snr:.1f} dB; at least {codec_snr:g} is needed")


def layer_errors(reference: ReferenceOutputs, generator: MusicGenerator, folder: Path) -> npt.NDArray[np.float64]:
    """The relative error of every layer's output, on the first sequence with text, [layers, S]."""
    import onnxruntime

    layers, steps, width = reference.hidden.shape
    names = [f"layers.{layer}.after_feed" for layer in range(layers)]
    model = onnx.load(str(folder / "decoder.onnx"))
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 1, width]) for name in names)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        onnx.save(model, f"{scratch}/d.onnx", save_as_external_data=True, location="d.data")
        session = onnxruntime.InferenceSession(f"{scratch}/d.onnx", providers=["CPUExecutionProvider"])
        actual = _tapped(session, names, generator, reference.sequences, steps)
    expected = reference.hidden
    size = np.sqrt(np.square(expected.astype(np.float64)).mean(-1))
    return np.asarray(np.sqrt(np.square(actual.astype(np.float64) - expected).mean(-1)) / np.maximum(size, 1e-12))


def _tapped(
    session: Session, names: list[str], generator: MusicGenerator, sequences: ForcedBatch, steps: int
) -> Floats:
    """The named outputs at every step of the first sequence, [layers, S, D]."""
    text = sequences.text(generator, 0)
    pad = generator.decoder.vocabulary
    inputs = inputs_for(delay(sequences.codes[:1], pad), pad)
    feeds: dict[str, Array] = {"text_mask": text.mask[None]}
    for number, array in enumerate(text.arrays):
        feeds[f"cross_{('key', 'value')[number % 2]}.{number // 2}"] = array[None]
    cache_outputs = [value.name for value in session.get_outputs() if value.name.startswith("kept_")]
    inputs_by_name = {value.name: value for value in session.get_inputs()}
    for name in cache_outputs:
        past = inputs_by_name[name.replace("kept", "past")]
        _, heads, _, size = past.shape
        feeds[past.name] = np.zeros((1, heads, steps, size), np.int8 if past.type == "tensor(int8)" else np.float32)
    states = []
    for step in range(steps):
        feeds |= {"codes": inputs[:, :, step], "positions": np.array([step], np.int32)}
        values = session.run([*names, *cache_outputs], feeds)
        feeds |= {
            name.replace("kept", "past"): value for name, value in zip(cache_outputs, values[len(names) :], strict=True)
        }
        states.append([value[0, 0] for value in values[: len(names)]])
    return np.asarray(states, np.float32).transpose(1, 0, 2)


def _by_part(kl_SK: npt.NDArray[np.float64]) -> dict[str, float]:
    steps, num_codebooks = kl_SK.shape
    parts = {
        "first step": slice(0, 1),
        "delay's beginning": slice(0, num_codebooks - 1),
        "between": slice(num_codebooks - 1, steps - num_codebooks + 1),
        "delay's end": slice(steps - num_codebooks + 1, steps),
        "last step": slice(steps - 1, steps),
    }
    return {name: float(np.nanmean(kl_SK[part])) for name, part in parts.items()}
