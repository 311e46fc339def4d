"""A forced aligner of ours: a small convolutional CTC model on log-mel at 50 Hz, trained on the corpus that it aligns.

The receptive field is 0.4 s and symmetric, so a phone cannot be recognised far from where it sounds; label priors (arXiv
2406.02560) are subtracted once the model has learned the order of phones, so that the blank does not take the frames that
belong to them. Nothing but phone sequences is needed; languages share one model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed, generator
from isogloss.core.types import Packed
from isogloss.evaluation.features import Progress
from isogloss.losses.ctc import ctc_loss, min_frames
from isogloss.losses.viterbi import ctc_chain, viterbi_align

HOP_SECONDS = 0.02
# Output frame j is centred on mel frame 2j, at 12.5 + 20·j ms, and stands for 10 ms on either side.
FIRST_EDGE_SECONDS = 0.0025


@dataclass(frozen=True)
class AlignerSettings:
    """What a run of the aligner depends on.

    A larger `prior_scale` lets phones take over pauses and their neighbours the longer it trains: on synthesised speech with
    exact times (1.1 h, 1,500 updates) 0.1, 0.3 and 0.6 put 68, 52 and 42 % of the boundaries within 20 ms; on forced
    alignments of real speech they do not differ.
    """

    width: int = 128
    num_blocks: int = 4
    min_updates: int = 1500
    max_epochs: int = 40
    utterances_per_update: int = 4
    learning_rate: float = 2e-3
    prior_scale: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class AlignedPhones:
    """Starts and ends in seconds of the U phones of an utterance, and how well they fit.

    `scores_U` is the mean log-probability of each phone in its frames; `loss` is the utterance's CTC loss per phone.
    """

    starts_U: list[float]
    ends_U: list[float]
    scores_U: list[float]
    loss: float


class AcousticModel(nn.Module):
    """log-mel S×80 at 100 Hz → logits at 50 Hz over the phones and the blank (last)."""

    def __init__(self, num_phones: int, width: int, num_blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(80, width, 5, stride=2, padding=2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_blocks + 1))
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2) for _ in range(num_blocks))
        self.out = nn.Linear(width, num_phones + 1)

    def forward(self, mels: Sequence[Tensor]) -> Packed:
        """Map utterances to packed logits; the frames of one do not depend on the others."""
        lengths_B = torch.tensor([(len(mel) - 1) // 2 + 1 for mel in mels])
        padded = nn.utils.rnn.pad_sequence(list(mels), batch_first=True)
        values_BSD = F.gelu(self.first(padded.transpose(1, 2))).transpose(1, 2)
        # Behind its end an utterance must look as it would alone: zeros, at every layer.
        is_real_BS1 = (torch.arange(values_BSD.shape[1]) < lengths_B[:, None])[:, :, None].to(values_BSD)
        values_BSD = values_BSD * is_real_BS1
        for norm, conv in zip(self.norms, self.convs, strict=False):
            inner_BSD = norm(values_BSD) * is_real_BS1
            values_BSD = values_BSD + F.gelu(conv(inner_BSD.transpose(1, 2))).transpose(1, 2) * is_real_BS1
        logits_BSC: Tensor = self.out(self.norms[-1](values_BSD))
        return Packed.from_padded(logits_BSC, lengths_B)


class ForcedAligner:
    """An acoustic model with its label priors; made by `train_aligner`."""

    def __init__(self, model: AcousticModel, log_priors_C: Tensor, settings: AlignerSettings) -> None:
        self.model = model
        self.log_priors_C = log_priors_C
        self.settings = settings

    @torch.no_grad()
    def align(
        self, mels: Sequence[Tensor], targets: Sequence[Tensor], ends_word: Sequence[Sequence[bool]], batch: int = 32
    ) -> list[AlignedPhones]:
        """Return the times of each utterance's phones.

        `ends_word[i][u]` says whether a pause may follow phone u. Blank frames between two phones of a word are divided
        between them; after the end of a word they are a pause where they last longer than 0.1 s. Raises `DataError` where
        an utterance has fewer frames than phones.
        """
        order = sorted(range(len(mels)), key=lambda i: len(mels[i]))
        aligned: dict[int, AlignedPhones] = {}
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            logits = self.model([mels[i] for i in chosen])
            log_probs_NC = logits.values_ND.log_softmax(-1)
            packed_targets = Packed.from_list([targets[i] for i in chosen])
            losses_B = ctc_loss(logits, packed_targets, zero_infinity=False) / packed_targets.lengths_B
            scores_NC = log_probs_NC - self.settings.prior_scale * self.log_priors_C
            scores = [part.numpy() for part in scores_NC.split(logits.sizes)]
            blank = scores_NC.shape[1] - 1
            paths = viterbi_align(scores, [ctc_chain(targets[i].tolist(), blank) for i in chosen])
            for i, path, part, loss in zip(chosen, paths, log_probs_NC.split(logits.sizes), losses_B, strict=True):
                aligned[i] = _times(path, part, targets[i], ends_word[i], float(loss))
        return [aligned[i] for i in range(len(mels))]


def train_aligner(
    mels: Sequence[Tensor],
    targets: Sequence[Tensor],
    num_phones: int,
    *,
    settings: AlignerSettings | None = None,
    progress: Progress | None = None,
) -> ForcedAligner:
    """Train on normalised log-mels (S×80, 100 Hz) and phone numbers (U); a pass over the data is an epoch.

    Epochs are added until `min_updates` updates are reached, so that small corpora are not undertrained.
    """
    settings = settings or AlignerSettings()
    usable = [
        i
        for i in range(len(mels))
        if len(targets[i]) and (len(mels[i]) + 1) // 2 >= int(min_frames(Packed.from_list([targets[i]]))[0])
    ]
    if not usable:
        raise DataError(
            "no utterance has as many frames as phones; usually because the texts belong to other recordings"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "aligner"))
        model = AcousticModel(num_phones, settings.width, settings.num_blocks)
    usable.sort(key=lambda i: len(mels[i]))
    size = settings.utterances_per_update
    batches = [usable[start : start + size] for start in range(0, len(usable), size)]
    epochs = min(settings.max_epochs, max(1, math.ceil(settings.min_updates / len(batches))))
    total = epochs * len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=1e-2)
    priors_C = torch.full((num_phones + 1,), 1 / (num_phones + 1))
    step = 0
    for epoch in range(epochs):
        for number in torch.randperm(len(batches), generator=generator(settings.seed, "aligner", epoch)).tolist():
            done = step / total
            warm = min(1.0, (step + 1) / 50)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * done) + 0.01)
            # With priors from the start the model finds no order at all: they come when it has found it.
            scale = settings.prior_scale * min(1.0, max(0.0, (done - 0.4) / 0.2))
            logits = model([mels[i] for i in batches[number]])
            target = Packed.from_list([targets[i] for i in batches[number]])
            losses_B = ctc_loss(logits, target, log_priors_C=priors_C.log(), prior_scale=scale)
            optimizer.zero_grad()
            (losses_B / target.lengths_B).mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            priors_C = 0.98 * priors_C + 0.02 * logits.values_ND.detach().softmax(-1).mean(0)
            step += 1
            if progress is not None:
                progress(step, total)
    model.eval()
    return ForcedAligner(model, priors_C.log(), settings)


def _times(
    path: np.ndarray, log_probs_SC: Tensor, targets_U: Tensor, ends_word: Sequence[bool], loss: float
) -> AlignedPhones:
    numbers = targets_U.tolist()
    first, last, scores = [], [], []
    for u, phone in enumerate(numbers):
        frames = np.flatnonzero(path == 2 * u + 1)
        first.append(float(frames[0]))
        last.append(float(frames[-1] + 1))
        scores.append(float(log_probs_SC[frames.tolist(), phone].mean()))
    longest_gap = 0.1 / HOP_SECONDS
    for u in range(len(numbers) - 1):
        gap = first[u + 1] - last[u]
        if gap <= longest_gap or not ends_word[u]:
            last[u] = first[u + 1] = last[u] + gap / 2
    return AlignedPhones(
        [FIRST_EDGE_SECONDS + HOP_SECONDS * x for x in first],
        [FIRST_EDGE_SECONDS + HOP_SECONDS * x for x in last],
        scores,
        loss,
    )
