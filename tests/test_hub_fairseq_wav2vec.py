"""fairseq's wav2vec and vq-wav2vec: the file of a model built from torch's layers under fairseq's names gives the same outputs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.core.errors import CheckpointError
from isogloss.core.types import Packed
from isogloss.encoders.wav2vec import Wav2VecConfig, Wav2VecEncoder
from isogloss.hub.load import load_model
from isogloss.objectives.base import build_objective

WIDTH, CODES = 8, 6
KERNELS, STRIDES, CONTEXT = (10, 8, 4, 4, 4, 1), (5, 4, 2, 2, 2, 1), (2, 3, 4)


class Reference(nn.Module):
    """The published model in torch's layers, with fairseq's names."""

    def __init__(self, quantizer: str, is_shared: bool) -> None:
        super().__init__()
        self.kind = quantizer
        act: nn.Module = nn.ReLU() if quantizer == "none" else nn.GELU()
        widths = [1] + [WIDTH] * len(KERNELS)
        self.feature_extractor = nn.Module()
        self.feature_extractor.conv_layers = nn.ModuleList(
            nn.Sequential(nn.Conv1d(a, WIDTH, k, s, bias=False), nn.Dropout(0.0), nn.GroupNorm(1, WIDTH), act)
            for a, k, s in zip(widths, KERNELS, STRIDES, strict=False)
        )
        self.feature_aggregator = nn.Module()
        self.feature_aggregator.conv_layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.ReplicationPad1d((k - 1, 0)),
                    nn.Conv1d(WIDTH, WIDTH, k),
                    nn.Dropout(0.0),
                    nn.GroupNorm(1, WIDTH),
                    act,
                )
                for k in CONTEXT
            )
        )
        self.wav2vec_predictions = nn.Module()
        self.wav2vec_predictions.project_to_steps = nn.ConvTranspose2d(WIDTH, WIDTH, (1, 12))
        books = 1 if is_shared else 2
        if quantizer != "none":
            self.vector_quantizer = nn.Module()
        if quantizer == "gumbel":
            self.vector_quantizer.vars = nn.Parameter(torch.rand(1, books * CODES, WIDTH // 2))
            self.vector_quantizer.weight_proj = nn.Sequential(
                nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), act), nn.Linear(2 * WIDTH, 2 * CODES)
            )
        elif quantizer == "kmeans":
            self.vector_quantizer.embedding = nn.Parameter(torch.randn(CODES, books, WIDTH // 2))
            self.vector_quantizer.projection = nn.Sequential(
                nn.Conv1d(WIDTH, WIDTH, 1, groups=2, bias=False), nn.GroupNorm(2, WIDTH)
            )

    def forward(self, waveform_T: Tensor) -> tuple[Tensor, Tensor]:
        x = waveform_T[None, None]
        for layer in self.feature_extractor.conv_layers:
            x = layer(x)
        x = (x.abs() + 1).log() if self.kind == "none" else self.quantize(x)
        latents = x
        for layer in self.feature_aggregator.conv_layers:
            x = (layer(x) + x) * 0.5**0.5
        return latents[0].t(), x[0].t()

    def quantize(self, x: Tensor) -> Tensor:
        parts = []
        if self.kind == "gumbel":
            logits = self.vector_quantizer.weight_proj(x[0].t())
            for g in range(2):
                book = self.vector_quantizer.vars[0].view(-1, CODES, WIDTH // 2)
                parts.append(book[min(g, len(book) - 1)][logits[:, g * CODES : (g + 1) * CODES].argmax(1)])
        else:
            rows = self.vector_quantizer.projection(x)[0].t()
            for g in range(2):
                book = self.vector_quantizer.embedding[:, min(g, self.vector_quantizer.embedding.shape[1] - 1)]
                parts.append(book[torch.cdist(rows[:, g * WIDTH // 2 : (g + 1) * WIDTH // 2], book).argmin(1)])
        return torch.cat(parts, dim=1).t()[None]


def saved(folder: Path, quantizer: str, is_shared: bool = True, **settings: Any) -> tuple[Reference, Path]:
    torch.manual_seed(4)
    model = Reference(quantizer, is_shared).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    told = {
        "skip_connections_agg": True,
        "residual_scale": 0.5,
        "log_compression": quantizer == "none",
        "agg_zero_pad": False,
    }
    told["activation"] = "relu" if quantizer == "none" else "gelu"
    path = folder / "model.pt"
    torch.save({"args": argparse.Namespace(arch="wav2vec", **told | settings), "model": model.state_dict()}, path)
    return model, path


@torch.no_grad()
@pytest.mark.parametrize(
    ("quantizer", "is_shared"),
    [("none", True), ("gumbel", True), ("gumbel", False), ("kmeans", True), ("kmeans", False)],
)
def test_outputs_are_equal(tmp_path: Path, quantizer: str, is_shared: bool) -> None:
    model, path = saved(tmp_path, quantizer, is_shared)
    loaded = load_model(path)
    assert isinstance(loaded.encoder, Wav2VecEncoder)
    config = loaded.encoder.config
    assert isinstance(config, Wav2VecConfig)
    assert (config.quantizer, config.context_kernels) == (quantizer, CONTEXT)
    waveform = torch.randn(5000)
    latents, context = model(waveform)
    states = loaded.encoder([waveform]).states
    torch.testing.assert_close(states[0].values_ND, latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(states[-1].values_ND, context, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("quantizer", ["none", "gumbel"])
def test_predictors_are_taken(tmp_path: Path, quantizer: str) -> None:
    model, path = saved(tmp_path, quantizer)
    loaded = load_model(path)
    objective = build_objective({"name": "wav2vec" if quantizer == "none" else "vq_wav2vec"}, loaded.encoder)
    report = objective.take_heads(loaded.head_tensors)
    assert report.taken == ["predictor.weight_KDE", "predictor.bias_E"]
    context = torch.randn(7, WIDTH)
    expected = model.wav2vec_predictions.project_to_steps(context.t()[None, :, :, None])[0]
    own = torch.stack(
        [context @ weight + objective.predictor.bias_E for weight in objective.predictor.weight_KDE], dim=2
    )
    torch.testing.assert_close(own.transpose(0, 1), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"), [({"agg_zero_pad": True}, "zero padding"), ({"residual_scale": 0.7}, "residual_scale")]
)
def test_switches_that_are_not_computed_are_told(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    _, path = saved(tmp_path, "none", **settings)
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


def test_an_utterance_too_short_for_a_frame(tmp_path: Path) -> None:
    _, path = saved(tmp_path, "kmeans")
    encoder = load_model(path).encoder
    assert isinstance(encoder, Wav2VecEncoder)
    assert encoder.codes(Packed.from_list([torch.randn(100)])).values_ND.shape == (0, 2)
    assert F.relu(encoder([torch.randn(100)]).last.values_ND).shape == (0, WIDTH)
