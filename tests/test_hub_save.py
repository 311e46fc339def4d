"""isogloss folders: whole or absent, verified when read; and the two commands around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from isogloss.core.config import Config
from isogloss.core.errors import CheckpointError
from isogloss.encoders.base import Encoder
from isogloss.encoders.cpc import CpcConfig
from isogloss.encoders.presets import build_encoder, preset, preset_names
from isogloss.encoders.wave import WaveConfig
from isogloss.hub import save
from isogloss.hub.load import load_encoder, load_model
from isogloss.hub.save import read_extra, save_model
from isogloss.objectives.base import build_objective

WAVE = WaveConfig(
    conv_channels=(8,) * 7, width=16, num_layers=2, num_heads=4, ffn_width=24, position_kernel=8, position_groups=2
)
CPC = CpcConfig(channels=8, width=6)
WAVEFORMS = [torch.randn(3000, generator=torch.Generator().manual_seed(0))]


class HeadConfig(Config):
    name: str = "made-up"


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = HeadConfig()
        self.layer = nn.Linear(3, 2)


def same(a: Encoder, b: Encoder) -> bool:
    with torch.no_grad():
        return torch.equal(a(WAVEFORMS).last.values_ND, b(WAVEFORMS).last.values_ND)


@pytest.mark.parametrize(
    "name", [name for name in preset_names() if name.endswith("-tiny") and not name.startswith("text")]
)
def test_every_kind_of_encoder_computes_the_same_after_loading(name: str, tmp_path: Path) -> None:
    encoder = build_encoder(preset(name)).eval()
    save_model(tmp_path / "model", encoder, None, {})
    with torch.no_grad():
        states = [each(WAVEFORMS).last.values_ND for each in (load_encoder(tmp_path / "model"), encoder)]
    torch.testing.assert_close(*states)  # recurrent layers add in another order once their weights lie apart


@pytest.mark.parametrize("config", [WAVE, CPC])
def test_round_trip(config: Any, tmp_path: Path) -> None:
    encoder, head = build_encoder(config).eval(), Head()
    save_model(tmp_path / "model", encoder, head, {"step": 7, "note": "ŋ"})
    loaded = load_model(tmp_path / "model")
    assert same(loaded.encoder, encoder)
    assert loaded.encoder.config == config
    assert loaded.objective_tree == {"name": "made-up"}
    torch.testing.assert_close(loaded.head_tensors["layer.weight"], head.layer.weight)
    assert read_extra(tmp_path / "model") == {"step": 7, "note": "ŋ"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert all(parameter.requires_grad for parameter in loaded.encoder.parameters())


def test_a_frozen_frontend_stays_frozen(tmp_path: Path) -> None:
    save_model(tmp_path / "m", build_encoder(WAVE.model_copy(update={"feature_gradient_scale": 0.0})), None, {})
    loaded = load_encoder(tmp_path / "m")
    assert {p.requires_grad for p in loaded.convolutions.parameters()} == {False}
    assert loaded.projection.weight.requires_grad


def test_saving_again_replaces_and_never_touches_what_is_not_ours(tmp_path: Path) -> None:
    first, second = build_encoder(CPC).eval(), build_encoder(CPC).eval()
    save_model(tmp_path / "model", first, None, {})
    save_model(tmp_path / "model", second, None, {})
    assert same(load_encoder(tmp_path / "model"), second)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="something else"):
        save_model(tmp_path / "papers", first, None, {})
    assert (tmp_path / "papers" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("failing", ["write_tensors", "_sync"])
def test_a_failed_save_leaves_the_old_one(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_encoder(CPC).eval()
    save_model(tmp_path / "model", encoder, None, {})

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, failing, fail)
    with pytest.raises(CheckpointError, match="No space left"):
        save_model(tmp_path / "model", build_encoder(CPC), None, {})
    assert same(load_encoder(tmp_path / "model"), encoder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    save_model(tmp_path / "model", build_encoder(CPC), None, {})
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    for place in torch.randint(0, len(whole), (50,), generator=torch.Generator().manual_seed(0)).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1
        weights.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError, match="damaged"):
            load_encoder(tmp_path / "model")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99},
        {"encoder": {"kind": "wave", "num_layers": 10**9}},
        {"encoder": {"kind": "conformer"}},
        {"encoder": {"kind": "cpc", "surprise": 1}},
        {"surprise": 1},
        {"sha256": "0"},
        {"objective": 3},
    ],
)
def test_a_description_that_does_not_fit_is_told(changes: dict[str, Any], tmp_path: Path) -> None:
    save_model(tmp_path / "model", build_encoder(CPC), None, {})
    description = tmp_path / "model" / "isogloss.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | changes))
    with pytest.raises(CheckpointError):
        load_encoder(tmp_path / "model")


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="hf download"):
        load_encoder(tmp_path / "facebook" / "wav2vec2-base")
    with pytest.raises(CheckpointError, match="not a model"):
        load_encoder(tmp_path)
    (tmp_path / "stopped" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="its run has not ended"):
        load_encoder(tmp_path / "stopped" / "model")
    save_model(tmp_path / "run" / "model", build_encoder(CPC), None, {})
    with pytest.raises(CheckpointError, match="the folder of a run holds its model in `.*run/model`"):
        load_encoder(tmp_path / "run")


def test_convert_and_export_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    from isogloss.cli.convert import app as convert
    from isogloss.cli.export import app as export

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    encoder = build_encoder(WAVE).eval()
    objective = build_objective({"name": "wav2vec2", "num_codes": 5, "target_width": 8, "final_width": 6}, encoder)
    save_model(tmp_path / "first", encoder, objective, {"step": 3})
    export([str(tmp_path / "first"), str(tmp_path / "exported")], standalone_mode=False)
    theirs = transformers.Wav2Vec2ForPreTraining.from_pretrained(tmp_path / "exported").eval()
    torch.testing.assert_close(theirs.quantizer.codevectors, objective.quantizer.codebook)
    torch.testing.assert_close(theirs.project_hid.weight, objective.project_context.weight)
    assert "Updates: 3" in (tmp_path / "exported" / "README.md").read_text()
    convert([str(tmp_path / "exported"), str(tmp_path / "second")], standalone_mode=False)
    again = load_model(tmp_path / "second")
    assert same(again.encoder, encoder)
    heads = build_objective({"name": "wav2vec2", "num_codes": 5, "target_width": 8, "final_width": 6}, encoder)
    assert heads.take_heads(again.head_tensors).fresh == ["gumbel_temperature"]
    export([str(tmp_path / "second"), str(tmp_path / "third")], standalone_mode=False)
    third = transformers.Wav2Vec2ForPreTraining.from_pretrained(tmp_path / "third").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            third.wav2vec2(WAVEFORMS[0][None]).last_hidden_state[0], encoder(WAVEFORMS).last.values_ND
        )
    assert "wrote" in capsys.readouterr().out
