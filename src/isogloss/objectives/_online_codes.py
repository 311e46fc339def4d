"""What DinoSR and SpidR share: a teacher's layers, clustered online, predicted by the student at hidden frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from isogloss.core.fields import Count, Positive, Share
from isogloss.core.rng import utterance_generators
from isogloss.core.types import EncoderOutput, LossTerms, SpeechBatch
from isogloss.corruption.spans import mask_spans
from isogloss.encoders.base import Encoder
from isogloss.encoders.presets import EncoderConfig, build_encoder
from isogloss.nn.dropout import scale_gradient
from isogloss.nn.product import Linear
from isogloss.objectives._teacher import FRONTEND, check_layers, is_in_blocks, layer_targets, rule_of_start
from isogloss.objectives.base import HeadReport, Objective, ObjectiveConfig, Watch
from isogloss.targets.base import perplexity
from isogloss.targets.online_codebook import OnlineCodebook
from isogloss.targets.teacher import EmaTeacher


class OnlineCodesConfig(ObjectiveConfig):
    """Settings of both.

    mask_probability, mask_span, min_masks
        As data2vec's.
    top_layers, num_codes, codebook_decay, code_std
        K, the teacher's layers that have a codebook each, the codes of each (V), δ of their averages, and the standard deviation of
        the codes at the start (`targets/online_codebook.py`).
    decay_start, decay_fraction
        Where τ of the teacher begins, and how soon it rises, as a fraction of the run.
    freeze_after
        Fraction of the run after which the teacher, and the convolutions that it shares with the student, stand still: 200 000 of
        400 000 updates. The codebooks go on.
    """

    mask_probability: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    mask_span: Count = 10
    min_masks: Annotated[int, Field(ge=0)] = 1
    top_layers: Count = 8
    num_codes: Annotated[int, Field(ge=2)] = 256
    codebook_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    code_std: Positive = 0.1
    decay_start: Share = 0.999
    decay_fraction: Share = 0.075
    freeze_after: Share = 0.5


class OnlineCodes(Objective):
    """Cross-entropy of the codes that a teacher's top layers have at hidden frames, averaged over layers.

    A frame's code in layer k is the nearest entry of codebook k to the teacher's feed-forward output there, instance-normalised;
    the entries are running means of the hidden frames assigned to them. With M hidden frames and K layers

        loss = Σ_{t hidden} 1/K Σ_k −log softmax(W_k o_t^k)[code_t^k]
    """

    config: OnlineCodesConfig

    def __init__(self, config: OnlineCodesConfig, encoder: Encoder, *, random_teacher: bool = False) -> None:
        super().__init__()
        check_layers(encoder, config.top_layers)
        self.config = config
        self.heads = nn.ModuleList(Linear(encoder.width, config.num_codes) for _ in range(config.top_layers))
        for head in self.heads:
            # States have unit variance: so small, the cross-entropy begins within 0.05 of ln V.
            nn.init.normal_(cast(Linear, head).weight, std=0.25 * encoder.width**-0.5)
            nn.init.zeros_(cast(Linear, head).bias)
        self.codebook = OnlineCodebook(
            config.top_layers, config.num_codes, encoder.width, config.codebook_decay, config.code_std
        )
        self._has_random_teacher = random_teacher
        start = build_encoder(cast(EncoderConfig, encoder.config)) if random_teacher else None
        self.teacher = EmaTeacher(encoder, is_in_blocks(encoder).__contains__, start)
        self.watches = _watches(config)
        self.progress: Tensor
        self.register_buffer("progress", torch.zeros(()))

    @abstractmethod
    def student_states(self, states: EncoderOutput) -> list[Tensor]:
        """Return the student's N×D that each of the K heads reads, lowest layer first."""

    @abstractmethod
    def decay(self, progress: float) -> float:
        """Return τ of the teacher."""

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss over the hidden frames of a batch."""
        config = self.config
        latents = encoder.frontend(batch.audio).latents
        if self._is_frozen(float(self.progress)):
            # Nought, not none: processes of a group expect a gradient for every parameter.
            latents = latents.with_values(scale_gradient(latents.values_ND, 0.0))
        is_masked_N = mask_spans(
            latents.sizes,
            utterance_generators(batch.seeds_B, "masks"),
            probability=config.mask_probability,
            span=config.mask_span,
            min_masks=config.min_masks,
        )
        rows_M = is_masked_N.nonzero().squeeze(1).to(latents.values_ND.device)
        targets = layer_targets(self.teacher, latents, config.top_layers)
        targets_GMD = torch.stack([target_ND.index_select(0, rows_M) for target_ND in targets])
        codes_GM = self.codebook.assign(targets_GMD)
        if self.training:
            self.codebook.collect(targets_GMD, codes_GM)

        states = encoder.context(latents, is_masked_N.to(rows_M.device))
        total, num_right = latents.values_ND.new_zeros((), dtype=torch.float32), torch.zeros((), device=rows_M.device)
        guesses = []
        for head, state_ND, codes_M in zip(self.heads, self.student_states(states), codes_GM, strict=True):
            logits_MC = head(state_ND.index_select(0, rows_M)).float()
            total = total + F.cross_entropy(logits_MC, codes_M, reduction="sum") / config.top_layers
            guesses.append(logits_MC.detach().argmax(1))
            num_right += (guesses[-1] == codes_M).sum()
        num_masked, has_masks = len(rows_M), float(len(rows_M) > 0)
        counts_GC = _counts(codes_GM, config.num_codes)
        guessed_GC = _counts(torch.stack(guesses), config.num_codes)
        per_book = has_masks / config.top_layers
        return LossTerms(
            total,
            num_masked,
            {
                "cross_entropy": (total.detach(), num_masked),
                "accuracy": (num_right, num_masked * config.top_layers),
                # of a micro-batch, mean over the codebooks: they cannot exceed its hidden frames
                "code_perplexity": (perplexity(counts_GC / max(num_masked, 1)) * per_book, has_masks),
                "predicted_perplexity": (perplexity(guessed_GC / max(num_masked, 1)) * per_book, has_masks),
                "active_codes": ((counts_GC > 0).sum() * per_book, has_masks),
                "masked_fraction": (num_masked, len(is_masked_N)),
            },
        )

    def after_step(self, progress: float) -> None:
        """Move the codebooks by the frames of the whole update."""
        self.progress.fill_(progress)
        self.codebook.step()

    def forget_update(self) -> None:
        """Drop the frames of an update that is left out."""
        self.codebook.forget()

    def follow(self, encoder: Encoder, progress: float) -> None:
        """Average the encoder into the teacher; once it is frozen, hold the convolutions that both read."""
        if self._is_frozen(progress):
            self.teacher.hold(encoder, [name for name in encoder.state_dict() if name.startswith(FRONTEND)])
        else:
            self.teacher.follow(encoder, self.decay(progress))

    def take_heads(self, tensors: Mapping[str, Tensor]) -> HeadReport:
        """Copy heads, teacher and codebooks; a new run begins at its beginning, however far that of the checkpoint was."""
        report = super().take_heads({name: tensor for name, tensor in tensors.items() if name != "progress"})
        report.sources += ["progress"] if "progress" in tensors else []
        return report

    def rebuild_heads(self, encoder: Encoder, names: Sequence[str]) -> str:
        """Leave them as they are: the teacher was made from the checkpoint's encoder, or at random where that is wished."""
        return rule_of_start(names, is_random=self._has_random_teacher)

    def _is_frozen(self, progress: float) -> bool:
        return progress > self.config.freeze_after


def _counts(codes_GM: Tensor, num_codes: int) -> Tensor:
    counts_GC = torch.zeros(len(codes_GM), num_codes, device=codes_GM.device)
    return counts_GC.scatter_add_(1, codes_GM, torch.ones_like(codes_GM, dtype=counts_GC.dtype))


def _watches(config: OnlineCodesConfig) -> tuple[Watch, ...]:
    advice = "lower the learning rate, or bring `objective.decay_start` nearer to 1"
    return (
        Watch(
            metric="code_perplexity",
            low=max(1.5, 0.02 * config.num_codes),
            patience=200,
            grace=100,
            meaning=f"the codebooks have collapsed to a few of their {config.num_codes} codes",
            advice=advice,
        ),
        Watch(
            metric="cross_entropy",
            low=0.05,
            patience=200,
            grace=100,
            meaning="the codes have become trivial to predict",
            advice=advice,
        ),
        Watch(
            metric="predicted_perplexity",
            low=1.1,
            patience=1000,
            grace=5000,
            meaning="the student predicts one code whatever it hears",
            advice=advice + ", warm up for longer",
        ),
    )
