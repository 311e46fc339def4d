"""The examples say what the package does: same weights and draws, same loss."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from isogloss.core.rng import utterance_generators
from isogloss.corruption.spans import mask_spans
from isogloss.encoders.presets import build_encoder
from isogloss.hub.families.wav2vec2 import FAMILY
from isogloss.hub.names import own_to_plain
from isogloss.losses.negatives import draw_within_utterances
from isogloss.objectives.base import build_objective
from objective_cases import WAVE, speech
from objective_cases.wav2vec2 import SMALL

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_one_file_wav2vec2_has_the_package_s_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    example = load("one_file_wav2vec2", monkeypatch)
    torch.manual_seed(0)
    encoder = build_encoder(WAVE)
    objective = build_objective(SMALL, encoder).train()
    own_encoder, own_heads = example.Encoder(example.Sizes()), example.Heads(example.Sizes())
    renamed = {FAMILY.keys.to_foreign(name): value for name, value in own_to_plain(encoder.state_dict()).items()}
    own_encoder.load_state_dict(renamed)
    heads = {FAMILY.heads.to_foreign(name): value for name, value in objective.state_dict().items()}
    own_heads.load_state_dict({name: value for name, value in heads.items() if name is not None})

    batch = speech([16000])
    terms = objective(encoder, batch)
    frames = encoder.num_frames(16000)
    is_masked = mask_spans([frames], utterance_generators(batch.seeds_B, "masks"), probability=0.65, span=10)
    num_masked = int(is_masked.sum())
    (negatives,) = draw_within_utterances(
        [num_masked], 100, utterance_generators(batch.seeds_B, "negatives"), torch.device("cpu")
    )
    noise = torch.empty(num_masked, 2, 40)
    noise.exponential_(generator=utterance_generators(batch.seeds_B, "codes")[0]).log_().neg_()
    loss = example.pretraining_loss(own_encoder, own_heads, batch.audio.values_ND, is_masked, negatives, noise)
    torch.testing.assert_close(loss, terms.total, rtol=1e-5, atol=0)

    (loss / num_masked).backward()
    (terms.total / num_masked).backward()
    torch.testing.assert_close(own_encoder.masked_spec_embed.grad, encoder.mask_embedding_D.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        own_heads.quantizer.weight_proj.weight.grad, objective.quantizer.logits.weight.grad, rtol=1e-3, atol=1e-5
    )
