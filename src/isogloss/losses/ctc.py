"""Connectionist temporal classification on packed logits: loss, greedy decoding, prefix beam search (Graves 2006; Hannun 2014).

The blank is an index of the caller's choice; −1 means the last class. Everything runs in log space: products of raw
probabilities underflow after a few hundred frames of a flat posterior.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isogloss.core.types import Packed

_MIX_A = -7046029254386353131  # odd constants of a 64-bit hash (golden ratio; splitmix64)
_MIX_B = -4658895280553007687


def ctc_loss(
    logits: Packed,
    targets: Packed,
    *,
    blank: int = -1,
    zero_infinity: bool = True,
    log_priors_C: Tensor | None = None,
    prior_scale: float = 0.0,
) -> Tensor:
    """Return the negative log-likelihood of each utterance's targets, B nats.

    `logits` is N×C, `targets` holds U symbols per utterance. An utterance with fewer frames than `min_frames` of its targets
    has an infinite loss, zero with `zero_infinity`. With `log_priors_C`, scores are log p(c) − `prior_scale` · log prior(c),
    which takes probability mass from the blank so that symbols last as long as they sound (arXiv 2406.02560, eq. 6).
    """
    num_classes = logits.values_ND.shape[1]
    scores_NC = F.log_softmax(logits.values_ND.float(), dim=-1)
    shift_B: Tensor | float = 0.0
    if log_priors_C is not None:
        scores_NC = scores_NC - prior_scale * log_priors_C
        # torch's gradient is right for normalised scores only, and a constant per frame shifts every path alike.
        shift_N = torch.logsumexp(scores_NC, dim=-1)
        scores_NC = scores_NC - shift_N[:, None]
        shift_B = torch.stack([part.sum() for part in shift_N.split(logits.sizes)])
    losses_B = F.ctc_loss(
        Packed(scores_NC, logits.lengths_B).padded().transpose(0, 1),
        targets.values_ND.long(),
        logits.lengths_B,
        targets.lengths_B,
        blank=blank % num_classes,
        reduction="none",
        zero_infinity=zero_infinity,
    )
    if isinstance(shift_B, Tensor) and zero_infinity:
        shift_B = shift_B * (logits.lengths_B >= min_frames(targets)).to(shift_B)
    return losses_B - shift_B


def min_frames(targets: Packed) -> Tensor:
    """Return the fewest frames that can carry each utterance's targets: one per symbol, one more between equal neighbours."""
    counts = [len(part) + int((part[1:] == part[:-1]).sum()) for part in targets.split()]
    return torch.tensor(counts, dtype=torch.int64)


def greedy_decode(logits: Packed, *, blank: int = -1) -> list[list[int]]:
    """Return the best symbol of every frame, repeats merged and blanks removed, one list per utterance."""
    blank = blank % logits.values_ND.shape[1]
    best_N = logits.values_ND.argmax(dim=-1)
    starts_N = torch.ones_like(best_N, dtype=torch.bool)
    starts_N[1:] = (best_N[1:] != best_N[:-1]) | (logits.utterance_N[1:] != logits.utterance_N[:-1])
    kept = Packed(best_N, logits.lengths_B).rows(starts_N & (best_N != blank))
    return [part.tolist() for part in kept.split()]


@torch.no_grad()
def prefix_beam_search(logits: Packed, *, beam: int = 20, blank: int = -1, batch_size: int = 64) -> list[list[int]]:
    """Return the most probable symbol sequence of each utterance among those a beam of prefixes keeps; no language model.

    The probability of a prefix is the sum over all its alignments. All utterances of a batch advance together; a prefix is
    known by a 64-bit hash of its symbols.
    """
    blank = blank % logits.values_ND.shape[1]
    scores_N = F.log_softmax(logits.values_ND.float(), dim=-1)
    parts = scores_N.split(logits.sizes)
    order = sorted(range(len(parts)), key=lambda i: len(parts[i]))
    decoded: list[list[int]] = [[] for _ in parts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for index, symbols in zip(chosen, _beam_search([parts[i] for i in chosen], beam, blank), strict=True):
            decoded[index] = symbols
    return decoded


def _beam_search(scores: list[Tensor], beam: int, blank: int) -> list[list[int]]:
    num_frames = [len(part) for part in scores]
    scores_BSC = torch.nn.utils.rnn.pad_sequence(scores, batch_first=True)
    B, S, C = scores_BSC.shape
    device = scores_BSC.device
    never = float("-inf")
    # Per prefix: log-probability of its alignments that end in the blank or in its last symbol, its hash, its parent's
    # hash, its last symbol (C where it has none).
    ends_blank_BK = torch.full((B, beam), never, device=device)
    ends_symbol_BK = torch.full((B, beam), never, device=device)
    ends_blank_BK[:, 0] = 0.0
    # Unused places of the beam have hashes of their own, so that nothing is ever merged with them.
    unused_BK = -torch.arange(1, beam + 1, device=device).expand(B, beam)
    hash_BK = unused_BK.clone()
    hash_BK[:, 0] = 1
    parent_BK = torch.zeros_like(hash_BK)
    last_BK = torch.full_like(hash_BK, C)
    symbols = torch.arange(C, device=device)
    history: list[tuple[Tensor, Tensor]] = []
    for frame in range(S):
        score_BC = scores_BSC[:, frame]
        total_BK = torch.logaddexp(ends_blank_BK, ends_symbol_BK)
        extended_BKC = total_BK[:, :, None] + score_BC[:, None, :]
        # The same symbol again makes a new one only after a blank.
        repeats_BKC = symbols == last_BK[:, :, None]
        extended_BKC = torch.where(repeats_BKC, (ends_blank_BK[:, :, None] + score_BC[:, None, :]), extended_BKC)
        extended_BKC[:, :, blank] = never
        score_last_BK = score_BC.gather(1, last_BK.clamp(max=C - 1)).masked_fill(last_BK == C, never)
        stay_blank_BK = total_BK + score_BC[:, blank, None]
        stay_symbol_BK = ends_symbol_BK + score_last_BK
        # Where prefix i extended by c is prefix j of the beam, its probability belongs to j.
        is_child_BKJ = (hash_BK[:, :, None] == parent_BK[:, None, :]) & (last_BK[:, None, :] < C)
        inherited_BKJ = extended_BKC.gather(2, last_BK.clamp(max=C - 1)[:, None, :].expand(B, beam, beam))
        inherited_BKJ = inherited_BKJ.masked_fill(~is_child_BKJ, never)
        stay_symbol_BK = torch.logaddexp(stay_symbol_BK, torch.logsumexp(inherited_BKJ, dim=1))
        num_taken_BKC = torch.zeros(B, beam, C + 1, dtype=torch.int32, device=device)
        num_taken_BKC.scatter_add_(2, last_BK[:, None, :].expand(B, beam, beam), is_child_BKJ.int())
        extended_BKC = extended_BKC.masked_fill(num_taken_BKC[:, :, :C] > 0, never)

        candidates = torch.cat([torch.logaddexp(stay_blank_BK, stay_symbol_BK), extended_BKC.flatten(1)], dim=1)
        _, index_BK = candidates.topk(beam, dim=1)
        stays_BK = index_BK < beam
        grown_BK = (index_BK - beam).clamp(min=0)
        from_BK = torch.where(stays_BK, index_BK, grown_BK // C)
        symbol_BK = torch.where(stays_BK, C, grown_BK % C)
        grown_score_BK = extended_BKC.flatten(1).gather(1, grown_BK)
        ends_blank_new = stay_blank_BK.gather(1, from_BK).masked_fill(~stays_BK, never)
        ends_symbol_new = torch.where(stays_BK, stay_symbol_BK.gather(1, from_BK), grown_score_BK)
        old_hash_BK = hash_BK.gather(1, from_BK)
        hash_new = torch.where(stays_BK, old_hash_BK, _mix(old_hash_BK, symbol_BK))
        parent_new = torch.where(stays_BK, parent_BK.gather(1, from_BK), old_hash_BK)
        last_new = torch.where(stays_BK, last_BK.gather(1, from_BK), symbol_BK)
        # A place that got nothing must not pass for a prefix that another place holds.
        is_empty_BK = torch.logaddexp(ends_blank_new, ends_symbol_new) == never
        hash_new = torch.where(is_empty_BK, unused_BK, hash_new)
        last_new = torch.where(is_empty_BK, C, last_new)
        # Utterances that have ended keep their beam.
        alive_B1 = torch.tensor([frame < n for n in num_frames], device=device)[:, None]
        own_BK = torch.arange(beam, device=device).expand(B, beam)
        history.append((torch.where(alive_B1, from_BK, own_BK), torch.where(alive_B1, symbol_BK, C)))
        ends_blank_BK = torch.where(alive_B1, ends_blank_new, ends_blank_BK)
        ends_symbol_BK = torch.where(alive_B1, ends_symbol_new, ends_symbol_BK)
        hash_BK = torch.where(alive_B1, hash_new, hash_BK)
        parent_BK = torch.where(alive_B1, parent_new, parent_BK)
        last_BK = torch.where(alive_B1, last_new, last_BK)
    best_B = torch.logaddexp(ends_blank_BK, ends_symbol_BK).argmax(dim=1, keepdim=True)
    decoded: list[list[int]] = [[] for _ in range(B)]
    for from_BK, symbol_BK in reversed(history):
        for symbols_of, symbol in zip(decoded, symbol_BK.gather(1, best_B)[:, 0].tolist(), strict=True):
            if symbol < C:
                symbols_of.append(symbol)
        best_B = from_BK.gather(1, best_B)
    return [symbols_of[::-1] for symbols_of in decoded]


def _mix(hash_BK: Tensor, symbol_BK: Tensor) -> Tensor:
    mixed = (hash_BK ^ (hash_BK >> 29)) * _MIX_A + (symbol_BK + 1) * _MIX_B
    return mixed ^ (mixed >> 32)
