"""Trains the house band's text encoder and language model on the tokens of rendered clips."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinymusician.codebooks import delay, inputs_for, valid
from tinymusician.data.tokens import TokenDataset, rows_of_step
from tinymusician.models.conditional_decoder import ConditionedDecoder, encode_text
from tinymusician.models.protocols import Musicgen
from tinymusician.training.task import Model, to_device

TEXT_DROPOUT = 0.1


class LMBatch(NamedTuple):
    """Delayed `inputs` and `targets` [B, K, S], text `ids` and `mask` [B, L], and the rows without text, `drop` [B]."""

    inputs: Tensor
    targets: Tensor
    ids: Tensor
    mask: Tensor
    drop: Tensor


class TrainableMusicgen(nn.Module):
    """Text encoder and decoder of a MusicGen, trained together: a batch in, logits [B, K, S, V] out."""

    def __init__(self, model: Musicgen) -> None:
        super().__init__()
        self.text_encoder = model.text_encoder
        self.language_model = ConditionedDecoder(model)

    def forward(self, batch: LMBatch) -> Tensor:
        text = encode_text(self, batch.ids, batch.mask).dropped(batch.drop)
        logits: Tensor = self.language_model(batch.inputs, text.states, text.mask)
        return logits


class LanguageModelTask:
    """Next-code cross-entropy over the valid positions of the delay pattern; a tenth of the rows has no text."""

    def __init__(
        self,
        model: Musicgen,
        train: TokenDataset,
        held_out: TokenDataset,
        batch_size: int,
        seed: int,
        held_out_rows: int = 128,
    ) -> None:
        self.module = TrainableMusicgen(model)
        self.train, self.held_out = train, held_out
        self.batch_size, self.seed, self.held_out_rows = batch_size, seed, held_out_rows
        self.pad = int(model.config.decoder.vocab_size)

    def rows(self, step: int, part: int, parts: int) -> npt.NDArray[np.int64]:
        """Rows of epoch after epoch, each shuffled; the parts of a step are disjoint."""
        return rows_of_step(step, part, parts, self.batch_size, len(self.train.codes), self.seed)

    def batch(self, step: int, part: int, parts: int) -> LMBatch:
        """The rows of a microbatch, some without their text."""
        rng = np.random.default_rng((self.seed, step, part, parts))
        drop = torch.from_numpy(rng.random(self.batch_size) < TEXT_DROPOUT)
        return captioned(self.train, self.rows(step, part, parts), self.pad, drop)

    def loss(
        self, model: Model, batch: LMBatch, step: int, diagnostics: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean of the codebooks' cross-entropies, in nats per code."""
        per_book = cross_entropy_per_codebook(model(batch), batch.targets)
        return per_book.mean(), {f"cross_entropy/{k + 1}": value for k, value in enumerate(per_book)}

    def validate(self, model: Model) -> dict[str, float]:
        """Held-out cross-entropy with the right caption, with none, and with another clip's."""
        rows = np.arange(min(self.held_out_rows, len(self.held_out.codes)))
        device = next(self.module.parameters()).device
        figures = {}
        for name, shift, dropped in (("right", 0, False), ("none", 0, True), ("wrong", 1, False)):
            total = torch.zeros(self.held_out.codes.shape[1], device=device)
            for part in np.array_split(rows, 4):
                drop = torch.full((len(part),), dropped)
                batch = to_device(captioned(self.held_out, part, self.pad, drop, shift), device)
                total += cross_entropy_per_codebook(model(batch), batch.targets) * len(part)
            per_book = total / len(rows)
            figures[f"cross_entropy/{name}"] = per_book.mean().item()
            if name == "right":
                figures |= {f"cross_entropy/right/{k + 1}": value.item() for k, value in enumerate(per_book)}
        return figures


def captioned(
    tokens: TokenDataset, rows: npt.NDArray[np.integer[Any]], pad: int, drop: Tensor, caption_shift: int = 0
) -> LMBatch:
    """Rows of a token set in the delay pattern, with the captions of the rows `caption_shift` further on."""
    targets = delay(tokens.codes[rows].astype(np.int64), pad)
    inputs = inputs_for(targets, pad)
    caption_rows = (rows + caption_shift) % len(tokens.codes)
    ids, mask = torch.from_numpy(tokens.text_ids[caption_rows]), torch.from_numpy(tokens.text_mask[caption_rows])
    return LMBatch(torch.from_numpy(inputs), torch.from_numpy(targets), ids, mask, drop)


def cross_entropy_per_codebook(logits_BKSV: Tensor, targets_BKS: Tensor) -> Tensor:
    """Mean cross-entropy of each codebook's valid positions, [K], in nats."""
    _, num_codebooks, steps, vocabulary = logits_BKSV.shape
    carries = torch.from_numpy(valid(num_codebooks, steps - num_codebooks + 1)).to(logits_BKSV.device)
    return torch.stack(
        [
            F.cross_entropy(
                logits_BKSV[:, k, carries[k]].reshape(-1, vocabulary).float(), targets_BKS[:, k, carries[k]].reshape(-1)
            )
            for k in range(num_codebooks)
        ]
    )


def unigram_entropy(codes_BKT: npt.NDArray[np.integer[Any]], vocabulary: int) -> list[float]:
    """The entropy of each codebook's code frequencies, in nats: the cross-entropy of a model without context."""
    entropies = []
    for book in codes_BKT.transpose(1, 0, 2).reshape(codes_BKT.shape[1], -1):
        share = np.bincount(book, minlength=vocabulary) / book.size
        share = share[share > 0]
        entropies.append(float(-(share * np.log(share)).sum()))
    return entropies
