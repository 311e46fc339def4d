"""The published sizes of wav2vec and vq-wav2vec, and small ones of ours."""

from __future__ import annotations

from isogloss.encoders.wav2vec import Wav2VecConfig

_EIGHT = {"kernels": (10, 8, 4, 4, 4, 1, 1, 1), "strides": (5, 4, 2, 2, 2, 1, 1, 1)}
_VQ = {**_EIGHT, "activation": "gelu", "log_compression": False}
_TINY = {"channels": 32, "kernels": (10, 8, 4, 4, 4), "strides": (5, 4, 2, 2, 2), "context_kernels": (2, 3)}
_SMALL = {"channels": 128, "context_kernels": (2, 3, 4, 5, 6, 7)}

PRESETS: dict[str, Wav2VecConfig] = {
    # arXiv 1904.05862: five convolutions and nine of kernel 3; LARGE as released.
    "wav2vec-base": Wav2VecConfig(
        kernels=(10, 8, 4, 4, 4), strides=(5, 4, 2, 2, 2), context_kernels=(3,) * 9, log_compression=False
    ),
    "wav2vec-large": Wav2VecConfig(),
    # arXiv 1910.05453 and its published commands.
    "vq-wav2vec-gumbel": Wav2VecConfig.model_validate(_VQ | {"quantizer": "gumbel"}),
    "vq-wav2vec-kmeans": Wav2VecConfig.model_validate(_VQ | {"quantizer": "kmeans"}),
    # Ours: seconds and minutes on two cores.
    "wav2vec-tiny": Wav2VecConfig.model_validate(_TINY),
    "wav2vec-small": Wav2VecConfig.model_validate(_SMALL),
    "vq-wav2vec-tiny": Wav2VecConfig.model_validate(
        _TINY | {"quantizer": "gumbel", "num_codes": 40, "activation": "gelu"}
    ),
    "vq-wav2vec-small": Wav2VecConfig.model_validate(
        _SMALL | {"quantizer": "gumbel", "num_codes": 64, "activation": "gelu", "log_compression": False}
    ),
}
