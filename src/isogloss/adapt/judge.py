"""Early stop: adaptation ends when the objective no longer gets better on held-out target audio, and the best update is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isogloss.adapt.heldout import Scores, score
from isogloss.core.errors import DataError, TrainingError
from isogloss.core.types import SpeechBatch
from isogloss.encoders.base import Encoder
from isogloss.training.parallel import Learner

COLLAPSE = 0.1  # of the perplexity at the start


class HeldOutJudge:
    """Measures held-out masked accuracy (the loss, where there is none); `patience` measurements without a better one end the run.

    `start` is the measurement of the model that the run starts from; one without anything measurable is a `DataError`. Its history
    is the log of the run, so a resumed run decides as one that was never interrupted. Perplexity below a tenth of that at the start
    is a `TrainingError`.
    """

    def __init__(
        self,
        learner: Learner,
        batches: Sequence[SpeechBatch],
        run_dir: Path,
        *,
        start: Mapping[str, float],
        patience: int,
    ) -> None:
        self._learner, self._batches, self._run_dir = learner, batches, run_dir
        self._start, self._patience = dict(start), patience
        self.metric = "accuracy" if "accuracy" in start else "loss"
        if math.isnan(start.get(self.metric, math.nan)):
            raise DataError(
                "the held-out audio must hold an utterance that the objective can be measured on, but has none; usually because all of it "
                "is shorter than `data.min_seconds` or the objective's masks; hold out more (`adapt.heldout`), or segment the recordings "
                "into longer ones"
            )
        self._history: dict[int, float] | None = None

    def __call__(self, encoder: Encoder, step: int) -> dict[str, Any]:
        """Return the figures that are logged: `heldout/NAME`, and `heldout/accuracy/LANGUAGE`."""
        scores = score(self._learner, self._batches)
        means = scores.means()
        self._history = {**self._known(step), step: means[self.metric]}
        for name, value in means.items():
            if "perplexity" in name and value < COLLAPSE * self._start.get(name, 0.0):
                raise TrainingError(
                    f"stopped at update {step}: `{name}` on held-out audio is {value:.3g}, below a tenth of the {self._start[name]:.3g} "
                    "before adaptation: the codebook has collapsed; lower the learning rate, freeze `objective.quantizer`, or replay "
                    "source audio"
                )
        return flat(scores, self.metric)

    def enough(self, step: int) -> bool:
        """Return whether the last `patience` measurements brought nothing better than what was before them."""
        known = self._known(step)
        best = self.best(step)
        return sum(1 for other in known if other > best) >= self._patience

    def best(self, last: int) -> int:
        """Return the update with the best measurement; 0 where none is better than the start."""
        sign = 1.0 if self.metric == "accuracy" else -1.0
        values = {0: self._start[self.metric], **self._known(last)}
        finite = {step: sign * value for step, value in values.items() if not math.isnan(value)}
        return max(sorted(finite), key=lambda step: finite[step])

    def num_compared(self, last: int) -> int:
        """Return among how many models the best was sought: those that were measured up to an update, and the start."""
        return 1 + len(self._known(last))

    def value(self, step: int) -> float:
        """Return the measurement of an update."""
        return {0: self._start[self.metric], **self._known(step)}[step]

    def _known(self, last: int) -> dict[int, float]:
        """Return the measurements up to an update; those of before a resume come from the log."""
        if self._history is None:
            self._history = {}
            log = self._run_dir / "log.jsonl"
            for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # the last line of a killed process
                results = row.get("results", {})
                if row.get("event") == "probe" and f"heldout/{self.metric}" in results:
                    found = results[f"heldout/{self.metric}"]
                    self._history[row["step"]] = math.nan if found is None else found  # JSON has no NaN
        return {step: value for step, value in self._history.items() if step <= last}


def flat(scores: Scores, metric: str) -> dict[str, float]:
    """Return the means under names for the log."""
    named = {f"heldout/{name}": value for name, value in scores.means().items()}
    for language in sorted(scores.sums):
        value = scores.means(language).get(metric)
        if value is not None:
            named[f"heldout/{metric}/{language}"] = value
    return named
