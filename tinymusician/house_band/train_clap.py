"""Trains band-clap: a small ClapModel that matches captions and clips of the house band.

Source: CLAP's symmetric contrastive loss (arXiv 2211.06687, eq. 3), with transformers' feature extractor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig

from tinymusician.data.tokens import tokenize_captions
from tinymusician.distill.signals import Rows
from tinymusician.house_band.corpus import RenderedSplit
from tinymusician.models.protocols import Tokenizer
from tinymusician.training.task import Model, to_device


class ClapBatch(NamedTuple):
    """Log-mel `features` [B, 1, 251, 64], text `ids` and `mask` [B, L]."""

    features: Tensor
    ids: Tensor
    mask: Tensor


def new_clap(vocabulary: int) -> Any:
    """A ClapModel of 1.8 M parameters with random weights, for 5 s at 16 kHz."""
    audio = ClapAudioConfig(
        window_size=4,
        num_mel_bins=64,
        spec_size=128,
        patch_size=4,
        patch_stride=[4, 4],
        num_classes=16,
        hidden_size=256,
        projection_dim=128,
        depths=[1, 1, 2, 1],
        num_attention_heads=[2, 2, 4, 4],
        enable_fusion=False,
        patch_embeds_hidden_size=32,
        drop_path_rate=0.0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_hidden_layers=4,
    )
    text = ClapTextConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        type_vocab_size=1,
        projection_dim=128,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=128))


def clap_features() -> ClapFeatureExtractor:
    """Transformers' extractor for 5 s clips at 16 kHz: 64 mel bands in dB every 20 ms."""
    return ClapFeatureExtractor(
        feature_size=64,
        sampling_rate=16_000,
        hop_length=320,
        max_length_s=5,
        fft_window_size=1024,
        frequency_min=50,
        frequency_max=8000,
        truncation="rand_trunc",
        padding="repeatpad",
    )


class TrainableClap(nn.Module):
    """A ClapModel as a function of a batch: the scaled similarity of every clip with every caption, [B, B]."""

    def __init__(self, clap: Any) -> None:
        """The two scales have one dimension while they train: DeepSpeed cannot broadcast a scalar parameter."""
        super().__init__()
        self.clap = clap
        self._reshape_scales((1,))

    def trained(self) -> Any:
        """The ClapModel in transformers' layout."""
        self._reshape_scales(())
        return self.clap

    def _reshape_scales(self, shape: tuple[int, ...]) -> None:
        for name in ("logit_scale_a", "logit_scale_t"):
            setattr(self.clap, name, nn.Parameter(getattr(self.clap, name).detach().reshape(shape)))

    def forward(self, batch: ClapBatch) -> Tensor:
        never_longer = torch.zeros(len(batch.ids), 1, dtype=torch.bool, device=batch.ids.device)
        output = self.clap(
            input_features=batch.features, is_longer=never_longer, input_ids=batch.ids, attention_mask=batch.mask
        )
        scale = self.clap.logit_scale_a.exp().clamp(max=50)
        similarity: Tensor = scale * (output.audio_embeds.float() @ output.text_embeds.float().T)
        return similarity


class ClapTask:
    """Symmetric cross-entropy: each clip selects its caption in the batch, each caption its clip."""

    def __init__(
        self, clap: Any, tokenizer: Tokenizer, train: RenderedSplit, held_out: RenderedSplit, batch_size: int, seed: int
    ) -> None:
        self.module, self.features = TrainableClap(clap), clap_features()
        self.tokenizer, self.train, self.held_out = tokenizer, train, held_out
        self.batch_size, self.seed = batch_size, seed

    def rows(self, step: int, part: int, parts: int) -> npt.NDArray[np.int64]:
        """Random clips."""
        return np.random.default_rng((self.seed, step, part, parts)).integers(0, len(self.train.clips), self.batch_size)

    def batch(self, step: int, part: int, parts: int) -> ClapBatch:
        """The clips and captions of a microbatch."""
        return self._read(self.train, self.rows(step, part, parts))

    def loss(
        self, model: Model, batch: ClapBatch, step: int, diagnostics: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean of both directions, in nats."""
        return contrastive_loss(model(batch)), {}

    def validate(self, model: Model) -> dict[str, float]:
        """Held-out loss, and how often the right caption is among the ten nearest of 200."""
        count = min(200, len(self.held_out.clips))
        device = next(self.module.parameters()).device
        similarity = model(to_device(self._read(self.held_out, np.arange(count)), device))
        nearest = similarity.topk(10, dim=1).indices
        targets = torch.arange(count, device=device)[:, None]
        recall = (nearest == targets).any(1).float().mean().item()
        return {"loss": contrastive_loss(similarity).item(), "recall_at_10": recall}

    def _read(self, split: RenderedSplit, rows: Rows) -> ClapBatch:
        audio = list(split.audio(rows))
        features = self.features(audio, sampling_rate=16_000, return_tensors="pt")["input_features"]
        ids, mask = tokenize_captions(self.tokenizer, [split.clips[row].caption for row in rows])
        return ClapBatch(features, torch.from_numpy(ids), torch.from_numpy(mask))


def contrastive_loss(similarity_BB: Tensor) -> Tensor:
    """Cross-entropy of the diagonal by rows and by columns, averaged."""
    targets = torch.arange(len(similarity_BB), device=similarity_BB.device)
    return (F.cross_entropy(similarity_BB, targets) + F.cross_entropy(similarity_BB.T, targets)) / 2
