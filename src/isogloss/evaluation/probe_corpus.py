"""A corpus made ready for probes: phones from its alignment, its IPA text, or espeak-ng and our aligner, kept for the next time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from isogloss.core.errors import DataError
from isogloss.data.inputs import open_corpus, write_corpus
from isogloss.evaluation.aligner import AlignerSettings
from isogloss.evaluation.features import Progress
from isogloss.evaluation.labels import alignment_items
from isogloss.evaluation.silver import align_silver, words_of_alignment, words_of_ipa, words_of_text

PhoneLabels = Literal["auto", "alignment", "realign", "espeak", "ipa"]


def with_phones(
    cuts: Sequence[Any],
    labels: PhoneLabels = "auto",
    *,
    cache_dir: Path | None = None,
    settings: AlignerSettings | None = None,
    progress: Progress | None = None,
) -> tuple[list[Any], str]:
    """Return the cuts that have phone times, and a sentence that says where these are from.

    "alignment" takes the cuts' own. "realign" takes the phones of that alignment and not its times, "espeak" phones from the
    text by espeak-ng, "ipa" from a text that is IPA; their times come from an aligner trained on these very cuts (silver).
    "auto" is alignment where a cut has one, else espeak. With
    `cache_dir` the silver cuts are kept, keyed by what they were made of.
    """
    aligned = [cut for cut in cuts if alignment_items(cut)]
    if labels == "alignment" or (labels == "auto" and aligned):
        if not aligned:
            raise DataError(
                f"none of {len(cuts)} cuts has a phone alignment; put a `phones.ctm` beside the metadata, or try "
                "`--labels espeak` for silver labels from the texts"
            )
        return aligned, f"phones of {len(aligned)} of {len(cuts)} utterances from the corpus's alignment"
    settings = settings or AlignerSettings()
    words_of, origin = {
        "realign": (words_of_alignment, "the corpus's alignment"),
        "ipa": (words_of_ipa, "the IPA text"),
    }.get(labels, (words_of_text, "espeak-ng"))
    words = {cut.id: words_of(cut) for cut in cuts}
    made_of = [asdict(settings), [[c.id, c.duration, words[c.id]] for c in cuts]]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:24]
    folder = cache_dir / "silver" / key if cache_dir is not None else None
    if folder is not None and (folder / "cuts.jsonl.gz").is_file():
        silver = list(open_corpus(folder))
        return (
            silver,
            f"phones of {len(silver)} of {len(cuts)} utterances from {origin}, times silver (kept in {folder})",
        )
    silver, report = align_silver(cuts, lambda cut: words[cut.id], settings=settings, progress=progress)
    if folder is not None:
        write_corpus(silver, folder)
    told = (
        f"phones of {report.num_aligned} of {len(cuts)} utterances from {origin}, times silver, from an aligner trained on "
        f"them; left out: {len(report.without_phones)} without phones, {len(report.too_short)} too short for their text, "
        f"{len(report.unfit)} whose text does not fit"
    )
    return silver, told
