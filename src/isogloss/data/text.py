"""The symbols of a corpus' texts or phones, found in one pass over its index."""

from __future__ import annotations

from collections.abc import Iterator

from isogloss.core.vocabulary import Labels
from isogloss.data.index import CorpusIndex
from isogloss.data.phones import aligned_phones


def labels_of_corpus(labels: Labels, index: CorpusIndex) -> Labels:
    """Return the settings with the symbols of a corpus; those that have symbols already are returned as they are.

    `DataError` where nothing in the corpus is labelled.
    """
    return labels if labels.symbols else labels.with_symbols_of(_sequences(labels, index))


def _sequences(labels: Labels, index: CorpusIndex) -> Iterator[list[str]]:
    for row in range(len(index)):
        cut = index.cut(row, with_audio=False)
        if labels.unit == "phones":
            yield aligned_phones(cut) or []
        elif cut.supervisions and cut.supervisions[0].text:
            yield labels.split(cut.supervisions[0].text)
