"""What units say about phones, where a corpus has phone alignments."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from isogloss.data.index import CorpusIndex
from isogloss.data.units import UnitTable
from isogloss.evaluation.labels import Inventory, alignment_items, frame_labels
from isogloss.evaluation.units import UnitQuality, unit_quality
from isogloss.nn.filterbank import SAMPLE_RATE


def phone_quality(
    table: UnitTable, index: CorpusIndex, *, max_utterances: int = 2000, seed: int = 0
) -> UnitQuality | None:
    """Return PNMI and purities of a table's units on up to so many aligned utterances; None where none is aligned.

    A label's time is the centre of its frame. Intervals resample speakers where they are known.
    """
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(index))
    units: list[npt.NDArray[Any]] = []
    cuts: list[Any] = []
    for row in order:
        cut = index.cut(int(row))
        if alignment_items(cut):
            cuts.append(cut)
            units.append(table.labels(cut.id).numpy())
        if len(cuts) == max_utterances:
            break
    if not cuts:
        return None
    inventory = Inventory.of([item.symbol for item in alignment_items(cut)] for cut in cuts)
    phones = [
        frame_labels(cut, (table.first_center + table.hop * np.arange(len(found))) / SAMPLE_RATE, inventory)
        for cut, found in zip(cuts, units, strict=True)
    ]
    speakers = [cut.supervisions[0].speaker if cut.supervisions else None for cut in cuts]
    return unit_quality(units, phones, speakers=speakers if len(set(speakers)) > 3 else None)
