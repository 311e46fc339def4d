"""ABX: is a phone nearer to another token of itself than to a token of another phone?

The definitions are fastabx's (bootphon/fastabx; Schatz 2016): ON the phone, BY its neighbours and the speaker (within), or
BY its neighbours ACROSS speakers. Distances between tokens are computed once and shared by all cells that need them.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.rng import derive_seed
from isogloss.core.threads import one_thread
from isogloss.evaluation import _abx_collapse as collapse
from isogloss.evaluation._abx_cells import Cells, score
from isogloss.evaluation._abx_distances import Tokens
from isogloss.evaluation._dtw import MAX_FRAMES
from isogloss.evaluation.bootstrap import Estimate
from isogloss.evaluation.labels import is_silence

Speaker = Literal["within", "across"]
Context = Literal["triphone", "phone", "any"]
Distance = Literal["angular", "euclidean"]

SILENCE = "SIL"
_GAP_SECONDS = 0.03  # a longer hole between two phones is a silence


class AbxItem(NamedTuple):
    """One token: where it is (seconds from the start of the features of `id`), which phone, between which, by whom.

    `triphone` is the span from the start of the phone before to the end of the one after, None beside a silence.
    """

    id: str
    onset: float
    offset: float
    phone: str
    prev: str
    next: str
    speaker: str
    triphone: tuple[float, float] | None = None

    def span(self, context: Context) -> tuple[float, float] | None:
        """Return the onset and offset of what is compared: the whole triphone, or the phone alone."""
        return self.triphone if context == "triphone" else (self.onset, self.offset)


@dataclass(frozen=True)
class ABXResult:
    """The error (chance is 0.5), its interval, and what it was made of.

    `cells` has one entry per (phone a, phone b, context, speaker of a and b, speaker of x). `num_skipped` counts tokens that
    hold no frame (or are no triphone where triphones are compared), `num_capped` those left out by `max_tokens`.
    """

    error: Estimate
    cells: Cells
    num_items: int
    num_skipped: int
    num_capped: int
    replicates: npt.NDArray[np.float64]
    design: str

    @property
    def num_cells(self) -> int:
        """How many cells were scored."""
        return len(self.cells.errors)

    def cell_table(self) -> list[dict[str, Any]]:
        """Return one row per cell, with the number of its triplets."""
        return self.cells.table()

    def by_phone(self) -> dict[str, float]:
        """Return the mean error of the phone pairs that hold each phone."""
        return collapse.by_phone(self.cells)


def abx(
    items: Sequence[AbxItem],
    features: Mapping[str, Any],
    *,
    frame_rate_hz: float,
    first_center_seconds: float | None = None,
    speaker: Speaker = "within",
    context: Context = "triphone",
    distance: Distance = "angular",
    max_tokens: int | None = 10,
    max_x_speakers: int | None = 5,
    drop_last: bool = False,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> ABXResult:
    """Return the ABX error of features (id → S×D) on phone tokens.

    Contexts: "triphone" compares whole triphones that differ in their middle phone only (/bag/ and /beg/), as ZeroSpeech
    does; "phone" compares the phones alone, between equal neighbours; "any" compares phones whatever their neighbours.
    A token's frames are those whose centre lies in [onset, offset]; frame 0's centre is at `first_center_seconds` (half a
    frame by default, as in fastabx). `drop_last` leaves out the last of them, as Libri-Light did. Tokens are compared by
    DTW over the angle between frames (in half turns); all-zero frames are as far from others as can be. Errors are averaged
    over contexts, then speakers (pairs of speakers across), then phone pairs. At most `max_tokens` tokens of one phone,
    context and speaker, and `max_x_speakers` speakers of x for one phone, context and speaker of a, are used; which ones is
    a function of `seed` and the tokens' names. The interval resamples speakers; with fewer than five of them it is a
    jackknife over utterances, and says so. Raises `DataError` if no cell can be formed.
    """
    _check(speaker, context, distance, frame_rate_hz)
    if first_center_seconds is None:
        first_center_seconds = 0.5 / frame_rate_hz
    if context == "triphone" and not any(item.triphone for item in items):
        raise DataError(
            f"none of the {len(items)} phone tokens is a triphone; usually because they come without their neighbours' "
            "times; try context `phone` or `any`"
        )
    usable = []
    for item in items:
        num_frames = len(_features_of(features, item.id))
        first, end = _item_frames(item, context, frame_rate_hz, first_center_seconds, drop_last=drop_last)
        if min(end, num_frames) > first:
            usable.append((item, first, min(end, num_frames)))
    capped = _cap(usable, max_tokens, context, seed)
    if not capped:
        raise DataError(f"none of the {len(items)} phone tokens holds a frame; check `frame_rate_hz` ({frame_rate_hz})")
    longest, first, end = max(capped, key=lambda token: token[2] - token[1])
    if end - first > MAX_FRAMES:
        raise DataError(
            f"a token of `{longest.phone}` in `{longest.id}` has {end - first} frames, more than {MAX_FRAMES}; usually the "
            "alignment is wrong there"
        )
    tokens = _pack(capped, features, context, distance)
    with one_thread():
        cells = score(tokens, across=speaker == "across", distance=distance, max_x_speakers=max_x_speakers, seed=seed)
    if not len(cells.errors):
        raise DataError(
            f"no ABX cell can be formed {speaker} speaker with context `{context}` from {len(capped)} tokens of "
            f"{len(tokens.phones)} phones and {len(tokens.speakers)} speakers; usually because the set is too small; "
            "try more recordings or context `any`"
        )
    error, replicates = collapse.estimate(cells, resamples=resamples, level=level, seed=seed)
    return ABXResult(
        error=error,
        cells=cells,
        num_items=len(capped),
        num_skipped=len(items) - len(usable),
        num_capped=len(usable) - len(capped),
        replicates=replicates,
        design=_design(capped, speaker, context, seed, resamples),
    )


def paired_difference(a: ABXResult, b: ABXResult) -> Estimate:
    """Estimate error(a) − error(b) of two feature sets on the same tokens, with the same resamples."""
    if a.design != b.design or len(a.replicates) != len(b.replicates):
        raise DataError(
            "a paired difference of ABX errors needs the same tokens for both, but they differ; usually because the "
            "frame rates differ so much that other tokens hold a frame; try `common_items` first"
        )
    return collapse.estimate_difference(a.error, b.error, a.replicates, b.replicates)


def common_items(
    items: Iterable[AbxItem],
    sources: Sequence[tuple[Mapping[str, Any], float, float | None]],
) -> list[AbxItem]:
    """Return the items whose phone holds a frame in every source (features, frame rate in Hz, centre of frame 0 in seconds)."""
    kept = []
    for item in items:
        for features, rate, center in sources:
            first, end = token_frames(item.onset, item.offset, rate, 0.5 / rate if center is None else center)
            if min(end, len(_features_of(features, item.id))) <= first:
                break
        else:
            kept.append(item)
    return kept


def token_frames(
    onset: float, offset: float, frame_rate_hz: float, first_center_seconds: float, *, drop_last: bool = False
) -> tuple[int, int]:
    """Return the first frame of a token and the one after its last: those whose centres lie in [onset, offset].

    With the first centre at half a frame Δ these are ⌈on/Δ − ½⌉ … ⌊off/Δ − ½⌋ (fastabx, "slicing").
    """
    # Times are given to the millisecond at best: rounding keeps a centre that falls on a border inside, whatever the
    # binary fractions say.
    first = math.ceil(round((onset - first_center_seconds) * frame_rate_hz, 6))
    last = math.floor(round((offset - first_center_seconds) * frame_rate_hz, 6))
    return max(first, 0), last + (0 if drop_last else 1)


def _item_frames(
    item: AbxItem, context: Context, frame_rate_hz: float, first_center_seconds: float, *, drop_last: bool
) -> tuple[int, int]:
    span = item.span(context)
    return (0, 0) if span is None else token_frames(*span, frame_rate_hz, first_center_seconds, drop_last=drop_last)


def items_from_cuts(cuts: Iterable[Any], *, tier: str = "phone") -> list[AbxItem]:
    """Return the phone tokens of aligned cuts, in order.

    Silences are no tokens, but they are contexts; the edges of an utterance and holes of more than 30 ms count as silence. A
    cut without a speaker is its own speaker. Cuts without that tier of alignment are passed over.
    """
    items = []
    for cut in cuts:
        for supervision in cut.supervisions:
            phones = sorted((supervision.alignment or {}).get(tier, ()), key=lambda phone: phone.start)
            who = supervision.speaker or cut.id
            for index, phone in enumerate(phones):
                if is_silence(phone.symbol):
                    continue
                before = phones[index - 1] if index else None
                after = phones[index + 1] if index + 1 < len(phones) else None
                end = phone.start + phone.duration
                prev = _neighbour(before, phone.start - (before.start + before.duration) if before else 0)
                following = _neighbour(after, after.start - end if after else 0)
                triphone = None
                if before is not None and after is not None and SILENCE not in (prev, following):
                    triphone = (before.start, after.start + after.duration)
                items.append(AbxItem(cut.id, phone.start, end, phone.symbol, prev, following, str(who), triphone))
    return items


def _neighbour(phone: Any, gap: float) -> str:
    if phone is None or gap > _GAP_SECONDS or is_silence(phone.symbol):
        return SILENCE
    return str(phone.symbol)


def _check(speaker: str, context: str, distance: str, frame_rate_hz: float) -> None:
    for name, value, known in (
        ("speaker", speaker, ("within", "across")),
        ("context", context, ("triphone", "phone", "any")),
        ("distance", distance, ("angular", "euclidean")),
    ):
        if value not in known:
            raise ConfigError(f"`{name}` must be {' or '.join(f'`{k}`' for k in known)}, but is `{value}`")
    if not frame_rate_hz > 0:
        raise ConfigError(f"`frame_rate_hz` must be positive, but is {frame_rate_hz}")


def _features_of(features: Mapping[str, Any], key: str) -> Any:
    try:
        return features[key]
    except KeyError:
        raise DataError(f"there are no features of `{key}`, which the phone alignment names; extract it too") from None


def _cap(
    tokens: list[tuple[AbxItem, int, int]], limit: int | None, context: str, seed: int
) -> list[tuple[AbxItem, int, int]]:
    if limit is None:
        return tokens
    groups: dict[tuple[str, ...], list[tuple[AbxItem, int, int]]] = defaultdict(list)
    for token in tokens:
        item = token[0]
        neighbours = (item.prev, item.next) if context != "any" else ()
        groups[item.phone, item.speaker, *neighbours].append(token)
    return [
        token
        for group in groups.values()
        for token in (group if len(group) <= limit else sorted(group, key=lambda t: _draw(t[0], seed))[:limit])
    ]


def _draw(item: AbxItem, seed: int) -> int:
    """A number that depends on the token alone: other tokens, or another order of them, do not change which are drawn."""
    return derive_seed("abx", seed, item.id, f"{item.onset:.4f}", item.phone)


def _pack(
    kept: Sequence[tuple[AbxItem, int, int]],
    features: Mapping[str, Any],
    context: str,
    distance: str,
) -> Tokens:
    frames = [np.asarray(features[item.id][first:end], np.float32) for item, first, end in kept]
    values_ND = torch.from_numpy(np.concatenate(frames))
    if not torch.isfinite(values_ND).all():
        bad = next(item.id for (item, _, _), part in zip(kept, frames, strict=True) if not np.isfinite(part).all())
        raise DataError(f"the features of `{bad}` are not finite; usually because the encoder diverged")
    if distance == "angular":
        values_ND = _normalise(values_ND)
    contexts = [(item.prev, item.next) if context != "any" else ("*", "*") for item, _, _ in kept]
    return Tokens.build(
        values_ND,
        [len(part) for part in frames],
        [item.phone for item, _, _ in kept],
        contexts,
        [item.speaker for item, _, _ in kept],
        [item.id for item, _, _ in kept],
    )


def _normalise(values_ND: torch.Tensor) -> torch.Tensor:
    """Give rows unit length, and a border column that puts all-zero rows at the angle π from every other (0 from their like)."""
    norm_N1 = values_ND.norm(dim=1, keepdim=True)
    is_zero_N1 = norm_N1 == 0
    unit_ND = values_ND / norm_N1.masked_fill(is_zero_N1, 1.0)
    border_N1 = torch.full_like(norm_N1, 1e-6).masked_fill(is_zero_N1, -2e6)
    return torch.cat([unit_ND, border_N1], dim=1)


def _design(kept: Sequence[tuple[AbxItem, int, int]], *settings: object) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    for item, _, _ in kept:
        digest.update(repr(tuple(item)).encode())
    return digest.hexdigest()
