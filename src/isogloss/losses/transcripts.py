"""Transcripts as CTC targets: which utterances can be learned from, their summed loss, and the error rate on the way."""

from __future__ import annotations

import torch
from torch import Tensor

from isogloss.core.errors import DataError
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.core.vocabulary import BLANK, Vocabulary
from isogloss.losses.ctc import ctc_loss, greedy_decode, min_frames
from isogloss.losses.edit_distance import edit_distance


def encode_labels(vocabulary: Vocabulary, batch: SpeechBatch) -> list[Tensor | None]:
    """Return the numbered symbols of each utterance, None for one without a text or alignment.

    A batch that cannot carry what the labels need is a `DataError`.
    """
    needs = vocabulary.labels.needs
    contents = batch.phones if needs == "phones" else batch.text
    if contents is None:
        raise DataError(
            f"the batch has no `{needs}`, of which the labels are made; usually because the loader is not ours"
        )
    return [None if content is None else vocabulary.encode(content) for content in contents]


def transcript_loss(logits: Packed, labels_B: list[Tensor | None], *, weights_B: Tensor | None = None) -> LossTerms:
    """Return the CTC loss summed over the utterances that have labels and room for them; blank is class 0.

    `weights_B` multiplies the loss of each utterance.

    `num_targets` counts their symbols. Metrics: `error_rate` of the greedy decoding against the labels, and the shares of
    utterances that were left out: `unlabelled` (no label, or an empty one) and `too_long` (fewer frames than symbols and
    repetitions need). The logits of all utterances take part in the graph, so that every process has every gradient.
    """
    device = logits.values_ND.device
    parts = logits.split()
    needed = [0 if u is None else int(min_frames(Packed(u, torch.tensor([len(u)])))[0]) for u in labels_B]
    kept = [i for i, n in enumerate(needed) if 0 < n <= len(parts[i])]
    total = 0.0 * logits.values_ND.float().sum()
    num_symbols, errors = 0, 0
    if kept:
        targets = Packed.from_list([u for i in kept if (u := labels_B[i]) is not None])
        chosen = Packed.from_list([parts[i] for i in kept])
        losses_B = ctc_loss(chosen, targets.to(device), blank=BLANK)
        if weights_B is not None:
            losses_B = losses_B * weights_B[kept].to(losses_B)
        total = total + losses_B.sum()
        num_symbols = len(targets.values_ND)
        guesses = greedy_decode(Packed(chosen.values_ND.detach(), chosen.lengths_B), blank=BLANK)
        errors = sum(edit_distance(u.tolist(), g) for u, g in zip(targets.split(), guesses, strict=True))
    num_empty = sum(n == 0 for n in needed)
    num_utterances = len(labels_B)
    return LossTerms(
        total,
        num_symbols,
        {
            "error_rate": (errors, num_symbols),
            "unlabelled": (num_empty, num_utterances),
            "too_long": (num_utterances - num_empty - len(kept), num_utterances),
        },
    )
