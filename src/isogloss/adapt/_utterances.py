"""What a run keeps of every utterance that it was measured on, so that another run can be compared with it utterance by utterance."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from isogloss.adapt._figures import Figures
from isogloss.adapt.heldout import Utterance
from isogloss.core.errors import DataError

FILE = "utterances.jsonl"
TARGET, SOURCE = "target held out", "source"


def write_utterances(run_dir: Path, before: Figures, after: Figures) -> None:
    """Write the counts of every utterance before and after, a JSON line each; NaN is null."""
    with (run_dir / FILE).open("w", encoding="utf-8") as file:
        for when, figures in (("before", before), ("after", after)):
            for dataset, rows in ((TARGET, figures.target), (SOURCE, figures.source or [])):
                for row in rows:
                    counts = {
                        key: None if isinstance(value, float) and math.isnan(value) else value
                        for key, value in asdict(row).items()
                    }
                    file.write(json.dumps({"dataset": dataset, "when": when, **counts}, ensure_ascii=False) + "\n")


def read_utterances(run_dir: Path, when: str = "after") -> dict[str, Sequence[Utterance]]:
    """Return the utterances of each corpus, as the model was `when`; `DataError` where the run has none."""
    found: dict[str, list[Utterance]] = {}
    try:
        with (run_dir / FILE).open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if row.pop("when") == when:
                    dataset = row.pop("dataset")
                    for key in ("correct", "loss", "count"):
                        row[key] = math.nan if row[key] is None else float(row[key])
                    found.setdefault(dataset, []).append(Utterance(**row))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{run_dir / FILE}: must hold what every utterance was measured to be, but cannot be read; usually because an older isogloss "
            "made the run; make the run again in a new folder"
        ) from None
    return dict(found)
