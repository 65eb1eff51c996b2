"""Self-supervised training of an audio encoder: masked latent prediction and classification, as in MATPAC++.

The student encodes the visible patches of a clip. A predictor completes the masked ones, and several linear heads give
hypotheses of each. The targets are what a teacher, an exponential moving average of the student, makes of the masked
patches alone. Source: arXiv 2508.12709 (MATPAC++) and 2502.12031 (MATPAC), and their code (aurianworld/matpac).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinymusician.models.audio_encoder import PATCH_ROWS, AudioEncoder, EncoderBlocks, first_columns, sine_positions


@dataclass(frozen=True)
class MaskedPredictionConfig:
    """The objective's settings; the defaults are MATPAC++'s."""

    steps: int
    mask_share: float = 0.7
    predictor_width: int = 512
    predictor_layers: int = 8
    predictor_heads: int = 16
    hypotheses: int = 5
    classes: int = 2048
    class_hidden: int = 2048
    class_bottleneck: int = 256
    class_loss_weight: float = 0.5
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    teacher_warmup_steps: int = 9827
    center_decay: float = 0.9
    encoder_decay: tuple[float, float] = (0.99995, 0.99999)
    head_decay: tuple[float, float] = (0.998, 1.0)
    assignment_temperature: float = 0.1
    assignment_decay: float = 0.99997
    min_temperature: float = 1e-4


class Schedules(NamedTuple):
    """What changes with the step: temperatures of teacher and assignment, and the averages' decays."""

    teacher_temperature: float
    assignment_temperature: float
    encoder_decay: float
    head_decay: float


def schedules(config: MaskedPredictionConfig, step: int) -> Schedules:
    """The values at a step, counted from 0."""
    share = min(1.0, step / max(1, config.steps))
    warm = min(1.0, step / max(1, config.teacher_warmup_steps))
    return Schedules(
        _between(config.teacher_temperature, warm),
        config.assignment_temperature * config.assignment_decay**step,
        _between(config.encoder_decay, share),
        _between(config.head_decay, share),
    )


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share


class Prediction(NamedTuple):
    """For the masked patches M of a batch: `hypotheses` [B, M, H, D], `target` [B, M, D], class logits of both."""

    hypotheses: Tensor
    target: Tensor
    class_hypotheses: Tensor
    class_target: Tensor


class MaskedPredictor(nn.Module):
    """An encoder under self-supervised training, with everything that is dropped afterwards."""

    center: Tensor
    next_center: Tensor
    positions: Tensor

    def __init__(self, encoder: AudioEncoder, config: MaskedPredictionConfig) -> None:
        super().__init__()
        shape, width = encoder.shape, config.predictor_width
        self.config, self.encoder = config, encoder
        self.teacher = copy.deepcopy(encoder.student_encoder).requires_grad_(False)
        self.class_head = ClassHead(shape.width, config)
        self.class_teacher = copy.deepcopy(self.class_head).requires_grad_(False)
        self.embed = nn.Linear(shape.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer(
            "positions", sine_positions(width, PATCH_ROWS, shape.block_columns)[None], persistent=False
        )
        self.predictor = EncoderBlocks(width, config.predictor_layers, config.predictor_heads, 4 * width)
        self.heads = nn.Linear(width, config.hypotheses * shape.width)
        self.register_buffer("center", torch.zeros(config.classes))
        self.register_buffer("next_center", torch.zeros(config.classes))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, spectra_BCFT: Tensor, order_BP: Tensor) -> Prediction:
        """Predict the masked patches; `order` sorts each clip's patches, those that stay visible first."""
        patches = self.encoder.patches(spectra_BCFT)
        visible = round(patches.shape[1] * (1 - self.config.mask_share))
        shuffled = _take(patches, order_BP)
        encoded = self.encoder.student_encoder(self.encoder.with_class_token(shuffled[:, :visible]))
        with torch.no_grad():
            target = self.teacher(self.encoder.with_class_token(shuffled[:, visible:]))[:, 1:]
            class_target = self.class_teacher(target)
        completed = self.heads(self._complete(encoded, order_BP, visible))
        hypotheses = torch.unflatten(completed, -1, (self.config.hypotheses, -1))
        best = best_hypothesis(hypotheses, target)
        return Prediction(hypotheses, target, self.class_head(best), class_target)

    def _complete(self, encoded_BVD: Tensor, order_BP: Tensor, visible: int) -> Tensor:
        """What the predictor makes of the masked patches, in their shuffled order, [B, M, width]."""
        embedded = self.embed(encoded_BVD)
        grid = first_columns(self.positions, order_BP.shape[1] // PATCH_ROWS)
        positions = _take(grid.expand(len(order_BP), -1, -1), order_BP)
        masked = self.mask_token.expand(len(order_BP), order_BP.shape[1] - visible, -1)
        sequence = torch.cat([embedded[:, 1:], masked], dim=1) + positions
        completed: Tensor = self.predictor(torch.cat([embedded[:, :1], sequence], dim=1))
        return completed[:, 1 + visible :]

    @torch.no_grad()
    def begin_step(self, step: int) -> None:
        """Move the teachers towards the students, as the step's decays say, and the centre to its next value."""
        self.center.copy_(self.next_center)
        if step == 0:
            return
        values = schedules(self.config, step)
        _average(self.teacher, self.encoder.student_encoder, values.encoder_decay)
        _average(self.class_teacher, self.class_head, values.head_decay)

    @torch.no_grad()
    def end_first_microbatch(self, mean: Tensor) -> None:
        """Compute the next step's centre from the mean of the teacher's class probabilities, [classes].

        MATPAC's implementation does so; DINO's centre is the mean of the logits.
        """
        self.next_center.copy_(self.center.lerp(mean.to(self.center.dtype), 1 - self.config.center_decay))


class ClassHead(nn.Module):
    """DINO's projection head (arXiv 2104.14294): an MLP to a unit vector, then weight-normalized prototypes."""

    def __init__(self, width: int, config: MaskedPredictionConfig) -> None:
        super().__init__()
        hidden = config.class_hidden
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, config.class_bottleneck),
        )
        self.prototypes = nn.Linear(config.class_bottleneck, config.classes, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(self.prototypes.weight, dim=-1))


def prediction_loss(hypotheses_BMHD: Tensor, target_BMD: Tensor, temperature: float, min_temperature: float) -> Tensor:
    """2 - 2 cos of each hypothesis, weighted by a soft minimum over the hypotheses (MATPAC++, section 3).

    The weights have no gradient. Below the temperature `min_temperature`, only the best hypothesis counts.
    """
    distances = _distances(hypotheses_BMHD, target_BMD)
    if temperature < min_temperature:
        return distances.amin(-1).mean()
    weights = (-distances.detach() / temperature).softmax(-1)
    return (weights * distances).sum(-1).mean()


def best_hypothesis(hypotheses_BMHD: Tensor, target_BMD: Tensor) -> Tensor:
    """The hypothesis nearest to each target, [B, M, D]."""
    best = _distances(hypotheses_BMHD, target_BMD).argmin(-1)
    index = best[..., None, None].expand(-1, -1, 1, hypotheses_BMHD.shape[-1])
    return hypotheses_BMHD.gather(2, index)[:, :, 0]


def class_probabilities(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """The teacher's classes, centred and sharpened (DINO, section 3.1)."""
    return ((logits.float() - center) / temperature).softmax(-1)


def class_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between the teacher's classes `target` and the student's logits, in nats."""
    return -(target * (logits.float() / temperature).log_softmax(-1)).sum(-1).mean()


def _distances(hypotheses_BMHD: Tensor, target_BMD: Tensor) -> Tensor:
    cosine = F.cosine_similarity(hypotheses_BMHD.float(), target_BMD.float()[:, :, None], dim=-1)
    return 2 - 2 * cosine


def _take(x_BPD: Tensor, order_BP: Tensor) -> Tensor:
    return x_BPD.gather(1, order_BP[..., None].expand(-1, -1, x_BPD.shape[-1]))


def _average(slow: nn.Module, fast: nn.Module, decay: float) -> None:
    for average, current in zip(slow.parameters(), fast.parameters(), strict=True):
        average.lerp_(current.to(average.dtype), 1 - decay)
