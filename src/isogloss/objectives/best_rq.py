"""BEST-RQ (arXiv 2202.01855), and USM's several codebooks (2303.01037).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| BEST-RQ | noise spans | random-projection codes | cross-entropy | conformer on mel |

Put noise into spans of the spectrum, and tell from the context which code a frozen random quantizer gave to what was there.
Over the hidden frames t, with r frames of the spectrum x for each of the encoder's,

    y_t,g = argmin_i ‖norm(c_g,i) − norm(A_g [x_rt … x_rt+r−1])‖
    loss = Σ_t 1/G Σ_g cross-entropy(W_g·state_t, y_t,g)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from isogloss.core.fields import Count
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.corruption.bernoulli import fill_with_noise, mask_bernoulli
from isogloss.encoders.base import Encoder
from isogloss.losses.prediction import unit_cross_entropy, unit_metrics
from isogloss.objectives._reconstruction import Targets, frames_per_state, spectral
from isogloss.objectives.base import Objective, ObjectiveConfig, Watch
from isogloss.targets.random_projection import RandomProjectionQuantizer


class Config(ObjectiveConfig):
    """Settings of BEST-RQ; the defaults are those of its LibriSpeech models (arXiv 2202.01855).

    start_probability, mask_span, noise_std
        Every frame of the spectrum (10 ms) begins a span of so many with this probability, filled with N(0, noise_std²).
        Streaming models have .02 and 30.
    num_codebooks, num_codes, code_width
        Of the random quantizer; USM has 16 codebooks.
    """

    name: Literal["best_rq"] = "best_rq"
    start_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.01
    mask_span: Count = 40
    noise_std: Annotated[float, Field(ge=0.0)] = 0.1
    num_codebooks: Count = 1
    num_codes: Annotated[int, Field(ge=2)] = 8192
    code_width: Count = 16


@final
class BestRq(Objective):
    """Masked prediction of random-projection codes."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        spectral_encoder = spectral(encoder, "best_rq")
        self.quantizer = RandomProjectionQuantizer(
            frames_per_state(spectral_encoder) * spectral_encoder.spectrum_width,
            num_codebooks=config.num_codebooks,
            num_codes=config.num_codes,
            code_width=config.code_width,
        )
        self.predictions = nn.Linear(encoder.width, config.num_codebooks * config.num_codes)
        # States have unit variance: the first loss is then within 0.1 of ln(num_codes), however wide they are.
        nn.init.normal_(self.predictions.weight, std=0.25 * encoder.width**-0.5)
        nn.init.zeros_(self.predictions.bias)
        self.watches = _watches()

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss over the frames of which every piece of the spectrum is hidden."""
        encoder, config, seeds_B = spectral(encoder, "best_rq"), self.config, batch.seeds_B
        spectrum = encoder.spectrum(batch.audio)
        device = spectrum.values_ND.device
        is_hidden_R = mask_bernoulli(
            spectrum.sizes,
            utterance_generators(seeds_B, "masks"),
            start_probability=config.start_probability,
            span=config.mask_span,
        )
        noise = utterance_generators(seeds_B, "noise", device)
        latents = encoder.embed(fill_with_noise(spectrum, is_hidden_R, noise, std=config.noise_std)).latents
        states = encoder.context(latents).last

        targets = Targets.of(spectrum, encoder, batch.audio.sizes)
        hidden = Targets.of(spectrum.with_values(is_hidden_R[:, None].to(device)), encoder, batch.audio.sizes)
        is_masked_N = hidden.values_ME.all(1)
        rows_M = targets.rows_M[is_masked_N]
        codes_NG = self.quantizer(targets.values_ME)
        num_masked = len(rows_M)
        logits_MGC = self.predictions(states.values_ND.index_select(0, rows_M)).unflatten(1, (config.num_codebooks, -1))
        codes_MG = codes_NG[is_masked_N]
        total = unit_cross_entropy(logits_MGC.flatten(0, 1), codes_MG.flatten()) / config.num_codebooks

        metrics = unit_metrics(logits_MGC[:, 0], codes_MG[:, 0])
        metrics["prediction_loss"] = (total.detach(), num_masked)
        metrics["masked_fraction"] = (num_masked, len(is_masked_N))
        metrics |= _code_use(codes_NG[:, 0], config.num_codes)
        return LossTerms(total, num_masked, metrics)

    def rebuild_heads(self, encoder: Encoder, names: Sequence[str]) -> str:
        """Leave them as initialised: the random projection and its codes are drawn from the run's seed and never trained."""
        return "random-projection targets, drawn from the run's seed, and predictions of them that start near equal chances"


def _code_use(codes_N: Tensor, num_codes: int) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """Say how many codes the frames of a micro-batch have: distinct ones, perplexity, and entropy as a share of what it can be."""
    if len(codes_N) < 2:
        return dict.fromkeys(("distinct_codes", "code_perplexity", "code_entropy_share"), (0.0, 0.0))
    counts_C = torch.bincount(codes_N, minlength=num_codes)
    shares_C = counts_C / len(codes_N)
    entropy = -torch.xlogy(shares_C, shares_C).sum()
    return {
        "distinct_codes": ((counts_C > 0).sum(), 1.0),
        "code_perplexity": (entropy.exp(), 1.0),
        "code_entropy_share": (entropy / math.log(min(len(codes_N), num_codes)), 1.0),
    }


def _watches() -> tuple[Watch, ...]:
    return (
        Watch(
            metric="code_entropy_share",
            low=0.52,  # real speech, 200 to 5500 frames: .62 and more normalised, .59 to .35 not, .46 and less from 1000 on
            meaning="few distinct codes are targets: usually because the spectrum is not normalised, so that most frames look alike "
            "to the random quantizer, or because most of the audio is pause",
            advice='set `encoder.normalization="utterance"` if the recipe says another, cut long pauses out with `isogloss corpus '
            "segment`, and check that the audio is speech",
            patience=50,
            # The codes are fixed, so they cannot collapse; quiet field recordings (Mboshi, normalised) have .38 to .42.
            stops=False,
        ),
        Watch(
            metric="predicted_ratio",
            low=0.02,
            meaning="the predictions have collapsed to a few codes, whatever the input",
            advice="warm up for longer, or lower the learning rate",
            patience=1000,
            grace=5000,
        ),
    )
