"""What every encoder is: a frontend from audio to frames, and a context from frames to states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from isogloss.core.config import Config
from isogloss.core.lengths import ConvGeometry
from isogloss.core.types import EncoderOutput, FrontendOutput, Packed

if TYPE_CHECKING:
    from isogloss.encoders.language_edits import EditsConfig


class Encoder(nn.Module, ABC):
    """Audio to frames (`frontend`), frames to states (`context`), both on packed streams.

    `config` rebuilds the encoder; `geometry` says how samples become frames; `latent_width` is the width of the frontend's
    latents, `width` that of the states, `num_layers` is L (there are L+1 states). `normalizes_waveform` says whether the
    model expects each whole utterance at zero mean and unit variance (`prepare` does it). `is_causal` says that state t
    depends on no frame after t, without which predicting future latents (CPC) is trivial. `edits` says what depends on the
    language (encoders/language_edits.py), None where nothing does.
    """

    config: Config
    geometry: ConvGeometry
    sample_rate: int = 16_000
    latent_width: int
    width: int
    num_layers: int
    normalizes_waveform: bool
    is_causal: bool = False
    edits: EditsConfig | None = None

    @abstractmethod
    def frontend(self, audio: Packed) -> FrontendOutput:
        """Turn packed samples (N) into packed frames (N×D)."""

    @abstractmethod
    def context(self, latents: Packed, is_masked_N: Tensor | None = None) -> EncoderOutput:
        """Turn latents into L+1 states; rows where `is_masked_N` is True are replaced by the mask embedding first."""

    def blocks(self) -> Sequence[nn.Module]:
        """Return the large repeated parts (transformer blocks) that FSDP2 shards one by one; none where there are none."""
        return ()

    def feed_forwards(self) -> Sequence[nn.Module]:
        """Return the last feed-forward module of each block, whose output is added to the residual; none where there are none.

        What they compute is had with `recorded`; data2vec averages it into targets.
        """
        return ()

    def for_language(self, language: str) -> Encoder:
        """Return this encoder as it is for one of the languages that it was adapted to; what is shared is not copied.

        Raises `ConfigError` for a language that it was not adapted to.
        """
        from isogloss.encoders.language_edits import fixed_to

        return fixed_to(self, language)

    def num_frames(self, num_samples: int) -> int:
        """Return how many frames an utterance of so many samples has."""
        return self.geometry.num_frames(num_samples)

    def prepare(self, waveform_T: Tensor) -> Tensor:
        """Bring one whole utterance to what the model expects (zero mean and unit variance where it was trained so)."""
        if not self.normalizes_waveform:
            return waveform_T
        return (waveform_T - waveform_T.mean()) / torch.sqrt(waveform_T.var(unbiased=False) + 1e-7)

    def forward(
        self, waveforms: Sequence[Tensor] | Tensor | Packed, num_samples_B: Tensor | None = None
    ) -> EncoderOutput:
        """Encode a list of 1-D waveforms, a padded batch (B×T with `num_samples_B`), or a packed stream.

        Samples are taken as they are (apply `prepare` to each utterance first where the model wants it). Utterance i of the
        result equals the result for utterance i alone.
        """
        audio = pack_audio(waveforms, num_samples_B)
        return self.context(self.frontend(audio).latents)


@contextmanager
def recorded(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Keep what each call of these modules returns while the context lasts, in the order of the calls.

    An encoder is asked for its feed-forward outputs so, and pays nothing when it is not:
    `with recorded(encoder.feed_forwards()) as outputs: encoder.context(latents)`.
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def pack_audio(waveforms: Sequence[Tensor] | Tensor | Packed, num_samples_B: Tensor | None = None) -> Packed:
    """Pack waveforms in any of the accepted forms into one stream of samples; every value is checked for its shape."""
    if isinstance(waveforms, Packed):
        return waveforms
    if isinstance(waveforms, Tensor):
        if waveforms.dim() != 2:
            raise ValueError(
                f"a tensor of waveforms must be B×T, but has shape {tuple(waveforms.shape)}; pass a single utterance as a list [waveform]"
            )
        if num_samples_B is None:
            num_samples_B = torch.full((len(waveforms),), waveforms.shape[1])
        return Packed.from_padded(waveforms, num_samples_B)
    for index, waveform in enumerate(waveforms):
        if waveform.dim() != 1:
            raise ValueError(
                f"waveform {index} must be one-dimensional (samples), but has shape {tuple(waveform.shape)}; mix its channels down first"
            )
    if not waveforms:
        raise ValueError("`waveforms` must hold at least one utterance, but is empty")
    return Packed.from_list(list(waveforms))
