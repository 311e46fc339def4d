"""Signs of health that several objectives share."""

from __future__ import annotations

from isogloss.objectives.base import Watch

TRIVIAL_CONTRAST = Watch(
    metric="contrastive_loss",
    low=0.1,
    meaning="the contrastive task has become trivial: most negatives have the code of the positive, or codes tell positions",
    advice="raise `objective.diversity_weight`, lower the learning rate, or put more seconds into an update",
    patience=200,
    grace=100,
)


def chance_watch(low: float, meaning: str, advice: str = "") -> Watch:
    """Return the sign of a contrastive `accuracy` that stays near chance after the first 5000 updates."""
    return Watch(
        metric="accuracy",
        low=low,
        meaning=f"{meaning} no better than chance",
        advice=advice
        or "warm up for longer, change the learning rate, or check that the audio is speech at the right sampling rate",
        patience=1000,
        grace=5000,
    )


def latents_watch(low: float, grace: int) -> Watch:
    """Return the sign of latents whose spread over the frames of a batch, `latent_std`, falls below `low` after `grace` updates."""
    return Watch(
        metric="latent_std",
        low=low,
        meaning="the latents no longer differ from frame to frame: the encoder has collapsed",
        advice="lower the learning rate or warm up for longer",
        patience=200,
        grace=grace,
    )
