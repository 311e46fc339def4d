"""The phones of a cut: those of its alignment, without silences."""

from __future__ import annotations

from typing import Any

from isogloss.core.errors import DataError
from isogloss.core.vocabulary import ipa_segments

SILENCES = frozenset({"", "sil", "sp", "spn", "nsn", "pau", "_", "<eps>", "<sil>", "[silence]", "#"})


def is_silence(symbol: str) -> bool:
    """True for the usual names of silence, noise and empty labels."""
    return symbol.strip().lower() in SILENCES


def alignment_items(cut: Any, tier: str = "phone") -> list[Any]:
    """Return the alignment items (symbol, start, duration; seconds from the start of the cut) of a cut, in time order."""
    items = [item for supervision in cut.supervisions for item in (supervision.alignment or {}).get(tier, [])]
    return sorted(items, key=lambda item: item.start)


def aligned_phones(cut: Any, *, keep_silence: bool = False) -> list[str] | None:
    """Return the phones of a cut's alignment, None where it has none."""
    items = alignment_items(cut)
    return [item.symbol for item in items if keep_silence or not is_silence(item.symbol)] if items else None


def phone_sequence(cut: Any, *, keep_silence: bool = False) -> list[str]:
    """Return the phones of a cut: those of its alignment, else the segments of its text, which must be IPA then."""
    phones = aligned_phones(cut, keep_silence=keep_silence)
    if phones is not None:
        return phones
    text = " ".join(s.text for s in cut.supervisions if s.text)
    if not text:
        raise DataError(
            f"cut `{cut.id}` has neither a phone alignment nor a text; usually because the corpus is unlabelled; "
            "try a corpus with a CTM or TextGrid beside it"
        )
    return ipa_segments(text)
