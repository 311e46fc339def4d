"""wav2vec (arXiv 1904.05862).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| wav2vec | none (causal) | future latents | binary NCE over K steps | conv + conv |

From the context c_t, K affine maps guess the latents z_{t+3} … z_{t+K+2}; each guess is scored by its dot product with the
frame that came and with J other frames of the same utterance:

    loss = − Σ_t Σ_k [ log σ(z_{t+k+2}·h_k(c_t)) + negative_weight · Σ_j log σ(−z̃_j·h_k(c_t)) ]

which the loop divides by the number of pairs (t, k). Scores of zero give (1 + J)·ln 2 = 7.625.
"""

from __future__ import annotations

from typing import Literal, final

from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Positive
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.encoders.base import Encoder
from isogloss.encoders.wav2vec import Wav2VecEncoder
from isogloss.objectives._future import FuturePredictor, metrics_of, spread
from isogloss.objectives._watches import chance_watch, latents_watch
from isogloss.objectives.base import Objective, ObjectiveConfig, Watch


class Config(ObjectiveConfig):
    """Settings of wav2vec; the defaults are the published ones (arXiv 1904.05862; the released command).

    num_steps, num_negatives
        K, and J: frames drawn for each target frame from the others of its utterance; all steps share them.
    offset
        Frames between the context's frame and that of step 1; without it the fewest hops that cover a receptive field (3),
        as released. The paper's equation says 1, where a target shares samples with what the context has seen.
    negative_weight
        Factor on the sum over negatives. The paper's λ is this times J.
    """

    name: Literal["wav2vec"] = "wav2vec"
    num_steps: Count = 12
    num_negatives: Count = 10
    offset: Count | None = None
    negative_weight: Positive = 1.0


@final
class Wav2Vec(Objective):
    """Binary contrastive prediction of the latents of frames to come."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        if not encoder.is_causal:
            raise ConfigError(
                f"objective `wav2vec` needs a causal encoder, but {type(encoder).__name__} sees the frames that it would have "
                "to predict; try an encoder of kind `wav2vec`, or the objective `wav2vec2`"
            )
        if isinstance(encoder, Wav2VecEncoder) and encoder.quantizer is not None:
            raise ConfigError(
                "objective `wav2vec` does not train a quantizer, but `encoder.quantizer` is "
                f'"{encoder.config.quantizer}"; try `--set encoder.quantizer="none"`, or the objective `vq_wav2vec`'
            )
        self.config = config
        self.predictor = FuturePredictor(
            encoder, num_steps=config.num_steps, num_negatives=config.num_negatives, offset=config.offset
        )
        self.watches = _watches(config.num_negatives)

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss over all pairs of a frame and a step; utterances of `offset` frames or fewer have none."""
        latents = encoder.frontend(batch.audio).latents
        context = encoder.context(latents).last
        generators = utterance_generators(batch.seeds_B, "negatives", latents.values_ND.device)
        result = self.predictor(context, latents, generators, self.config.negative_weight)
        metrics = metrics_of(result) | {"latent_std": spread(latents.values_ND)}
        return LossTerms(result.losses_K.sum(), int(result.num_pairs_K.sum()), metrics)


def _watches(num_negatives: int) -> tuple[Watch, ...]:
    return (
        # Before the guesses tell frames apart a healthy run shrinks the latents too, for some hundred updates.
        latents_watch(1e-4, grace=2000),
        chance_watch(
            1.2 / (1 + num_negatives),
            "the guesses tell the next frames from negatives",
            "warm up for longer, or change the learning rate",
        ),
    )
