"""wav2vec 2.0 in one file of plain PyTorch, one utterance at a time: what isogloss computes, without isogloss.

    python examples/one_file_wav2vec2.py

trains a very small model for a minute on made-up sounds. Read it from `pretraining_loss` upwards (arXiv 2006.11477). Its
tensors have Hugging Face's names; `tests/test_examples.py` holds its loss to that of `isogloss.objectives.wav2vec2`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Widths and counts; BASE has 512, 768, 12 layers, 12 heads, 3072, 128 and 16, 2 books of 320, 256 and 256."""

    conv_width: int = 32
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    width: int = 32
    layers: int = 2
    heads: int = 2
    ffn: int = 64
    position_kernel: int = 16
    position_groups: int = 4
    books: int = 2
    codes: int = 40
    target_width: int = 32
    final_width: int = 32


class Block(nn.Module):
    """A transformer layer with its norms after the sums."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.heads = s.heads
        self.attention = nn.ModuleDict({f"{name}_proj": nn.Linear(s.width, s.width) for name in ("q", "k", "v", "out")})
        self.layer_norm = nn.LayerNorm(s.width)
        self.feed_forward = nn.ModuleDict(
            {"intermediate_dense": nn.Linear(s.width, s.ffn), "output_dense": nn.Linear(s.ffn, s.width)}
        )
        self.final_layer_norm = nn.LayerNorm(s.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map frames × width to the same."""
        q, k, v = (self.attention[f"{name}_proj"](x).unflatten(1, (self.heads, -1)).transpose(0, 1) for name in "qkv")
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = self.layer_norm(x + self.attention["out_proj"]((weights @ v).transpose(0, 1).flatten(1)))
        inner = F.gelu(self.feed_forward["intermediate_dense"](x))
        return self.final_layer_norm(x + self.feed_forward["output_dense"](inner))


class Encoder(nn.Module):
    """Convolutions from samples to frames, a transformer from frames to states."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        widths = [1, *[s.conv_width] * len(s.kernels)]
        convs = [
            nn.ModuleDict({"conv": nn.Conv1d(widths[i], widths[i + 1], kernel, stride, bias=False)})
            for i, (kernel, stride) in enumerate(zip(s.kernels, s.strides, strict=True))
        ]
        convs[0]["layer_norm"] = nn.GroupNorm(s.conv_width, s.conv_width)
        self.feature_extractor = nn.ModuleDict({"conv_layers": nn.ModuleList(convs)})
        self.feature_projection = nn.ModuleDict(
            {"layer_norm": nn.LayerNorm(s.conv_width), "projection": nn.Linear(s.conv_width, s.width)}
        )
        self.masked_spec_embed = nn.Parameter(torch.rand(s.width))
        position = nn.Conv1d(
            s.width, s.width, s.position_kernel, padding=s.position_kernel // 2, groups=s.position_groups
        )
        self.encoder = nn.ModuleDict(
            {
                "pos_conv_embed": nn.ModuleDict({"conv": nn.utils.parametrizations.weight_norm(position, dim=2)}),
                "layer_norm": nn.LayerNorm(s.width),
                "layers": nn.ModuleList(Block(s) for _ in range(s.layers)),
            }
        )

    def features(self, wave: Tensor) -> Tensor:
        """Return frames × conv width, one frame every 20 ms."""
        x = wave[None, None]
        for layer in self.feature_extractor["conv_layers"]:
            x = layer["conv"](x)
            x = F.gelu(layer["layer_norm"](x) if "layer_norm" in layer else x)
        return x[0].T

    def context(self, latents: Tensor, is_masked: Tensor) -> Tensor:
        """Hide the masked frames and return the last state, frames × width."""
        x = self.feature_projection["projection"](latents)
        x = torch.where(is_masked[:, None], self.masked_spec_embed, x)
        positions = self.encoder["pos_conv_embed"]["conv"](x.T[None])[0, :, : len(x)].T
        x = self.encoder["layer_norm"](x + F.gelu(positions))
        for block in self.encoder["layers"]:
            x = block(x)
        return x


class Heads(nn.Module):
    """The quantizer, and the projections into the space where states meet targets."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.sizes = s
        self.quantizer = nn.Module()
        self.quantizer.codevectors = nn.Parameter(torch.rand(1, s.books * s.codes, s.target_width // s.books))
        self.quantizer.weight_proj = nn.Linear(s.conv_width, s.books * s.codes)
        nn.init.normal_(self.quantizer.weight_proj.weight)
        nn.init.zeros_(self.quantizer.weight_proj.bias)
        self.project_q = nn.Linear(s.target_width, s.final_width)
        self.project_hid = nn.Linear(s.width, s.final_width)

    def quantize(self, frames: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return targets, the codes (frames × books), and the mean distribution over the codes of each book."""
        logits = self.quantizer.weight_proj(frames).unflatten(1, (self.sizes.books, self.sizes.codes))
        soft = ((logits + noise) / temperature).softmax(-1)
        codes = soft.argmax(-1)
        hard = F.one_hot(codes, self.sizes.codes) - soft.detach() + soft  # straight through
        books = self.quantizer.codevectors.view(self.sizes.books, self.sizes.codes, -1)
        return torch.einsum("fbc,bcd->fbd", hard, books).flatten(1), codes, logits.softmax(-1).mean(0)


def draw_mask(num_frames: int, probability: float = 0.65, span: int = 10) -> Tensor:
    """Hide spans at random starts; they may overlap."""
    num_spans = max(2, int(probability * num_frames / span + torch.rand(()).item()))
    is_masked = torch.zeros(num_frames, dtype=torch.bool)
    for start in torch.randperm(num_frames - span)[:num_spans].tolist():
        is_masked[start : start + span] = True
    return is_masked


def draw_negatives(num_masked: int, count: int = 100) -> Tensor:
    """Draw other masked frames of the same utterance."""
    rows = torch.randint(num_masked - 1, (num_masked, count))
    return rows + (rows >= torch.arange(num_masked)[:, None])  # never oneself


def draw_noise(num_masked: int, s: Sizes) -> Tensor:
    """Draw Gumbel noise, masked frames × books × codes."""
    return -torch.empty(num_masked, s.books, s.codes).exponential_().log()


def pretraining_loss(
    encoder: Encoder,
    heads: Heads,
    wave: Tensor,
    is_masked: Tensor,
    negatives: Tensor,  # masked frames × K, numbers of masked frames
    noise: Tensor,  # masked frames × books × codes, Gumbel
    temperature: float = 2.0,
    diversity_weight: float = 0.1,
    feature_penalty: float = 10.0,
) -> Tensor:
    """Return the loss of one utterance, summed over its masked frames."""
    features = encoder.features(wave)
    latents = encoder.feature_projection["layer_norm"](features)
    states = heads.project_hid(encoder.context(latents, is_masked)[is_masked])
    targets, codes, distribution = heads.quantize(latents[is_masked], noise, temperature)
    targets = heads.project_q(targets)

    # Which of these targets is that of my frame? The first is; those with the same codes cannot be told from it.
    candidates = torch.cat([torch.arange(len(states))[:, None], negatives], dim=1)
    logits = F.cosine_similarity(states[:, None], targets[candidates], dim=2) / 0.1
    is_copy = (codes[negatives] == codes[:, None]).all(2)
    logits = logits.masked_fill(F.pad(is_copy, (1, 0)), float("-inf"))
    contrastive = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="sum")

    # Use all codes, and keep the features small.
    perplexity = (-torch.xlogy(distribution, distribution).sum(1)).exp().sum()
    diversity = 1 - perplexity / distribution.numel()
    return contrastive + len(states) * (diversity_weight * diversity + feature_penalty * features.square().mean())


def main() -> None:
    """Learn eight made-up sounds by heart."""
    torch.manual_seed(0)
    s = Sizes()
    encoder, heads = Encoder(s), Heads(s)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=3e-3)
    waves = []
    for _ in range(8):
        pitch = (0.02 + 0.3 * torch.rand(20)).repeat_interleave(320)
        waves.append(torch.sin(pitch.cumsum(0)) + 0.1 * torch.randn(6400))
    num_steps = 100
    for step in range(num_steps):
        temperature = 2.0 * 0.25 ** min(step / (0.7 * num_steps), 1.0)
        total, num_targets = torch.zeros(()), 0
        for wave in waves:
            is_masked = draw_mask(len(encoder.features(wave)))
            num_masked = int(is_masked.sum())
            draws = is_masked, draw_negatives(num_masked), draw_noise(num_masked, s)
            total = total + pretraining_loss(encoder, heads, wave, *draws, temperature)
            num_targets += num_masked
        loss = total / num_targets
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            print(f"step {step + 1:4d}  loss {loss.item():.3f}  (chance {math.log(101):.3f})", flush=True)


if __name__ == "__main__":
    main()
