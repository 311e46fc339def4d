"""APC, autoregressive predictive coding (arXiv 1904.03240).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| APC | none (causal) | log-mel frames to come | L1 | RNN on mel |

From what a causal encoder has seen up to frame t, a linear head guesses frame t + n:

    loss = Σ_t |W c_t + b − x_{t+n}|

which the loop divides by the number of cells.
"""

from __future__ import annotations

from typing import Literal, final

import torch

from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count
from isogloss.core.types import LossTerms, SpeechBatch, iterate_spans
from isogloss.encoders.base import Encoder
from isogloss.nn.product import Linear
from isogloss.objectives._reconstruction import WATCHES, Targets, absolute_error, frames_per_state, spectral
from isogloss.objectives.base import Objective, ObjectiveConfig


class Config(ObjectiveConfig):
    """Settings of APC; the default is s3prl's and SUPERB's. The paper tries 1 to 20 steps ahead.

    steps_ahead
        n, in states of the encoder (10 ms each for the encoder `apc`).
    """

    name: Literal["apc"] = "apc"
    steps_ahead: Count = 5


@final
class Apc(Objective):
    """Prediction of a frame to come. Nothing is drawn: the same batch gives the same loss whatever its seeds."""

    config: Config
    watches = WATCHES

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        encoder = spectral(encoder, config.name)
        if not encoder.is_causal:
            raise ConfigError(
                f"objective `apc` needs a causal encoder, but {type(encoder).__name__} sees the frames that it would have to "
                "predict; try an encoder of kind `apc`, or the objective `mockingjay`"
            )
        self.config = config
        self.head = Linear(encoder.width, frames_per_state(encoder) * encoder.spectrum_width)

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed absolute error of the guesses; an utterance of n states or fewer has none."""
        encoder, ahead = spectral(encoder, self.config.name), self.config.steps_ahead
        spectrum = encoder.spectrum(batch.audio)
        targets = Targets.of(spectrum, encoder, batch.audio.sizes)
        states = encoder.context(encoder.embed(spectrum).latents).last
        seen_K = torch.cat(
            [torch.arange(start, max(end - ahead, start)) for start, end in iterate_spans(targets.lengths)]
        )
        seen_K = seen_K.to(targets.rows_M.device)
        guesses_KE = self.head(states.values_ND.index_select(0, targets.rows_M[seen_K]))
        to_come_KE = targets.values_ME[seen_K + ahead]
        return absolute_error(guesses_KE, to_come_KE, last_ME=targets.values_ME[seen_K])
