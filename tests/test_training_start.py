"""Starting from a model: what is taken, what is made afresh, what is frozen, and that a resumed run does not start anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import training_fakes as fakes
from isogloss.cli.main import main
from isogloss.core.errors import ConfigError
from isogloss.encoders.presets import build_encoder, preset
from isogloss.hub.load import load_model
from isogloss.hub.save import save_model
from isogloss.objectives.base import build_objective
from isogloss.training.loop import train
from isogloss.training.recipe import Recipe, parse_recipe
from isogloss.training.start import StartConfig, frontend_parameters, start_learner

OBJECTIVE = {"name": "wav2vec2", "num_codes": 8, "target_width": 16, "final_width": 24, "num_negatives": 5}
DATA = {"seconds_per_update": 3.2, "micro_batch_seconds": 1.6, "min_seconds": 0.3, "max_seconds": 1.2, "num_workers": 0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.make_corpus(tmp_path_factory.mktemp("corpus"), 10)


def write_model(folder: Path, encoder_name: str = "wave-tiny", objective: dict[str, Any] | None = OBJECTIVE) -> Path:
    torch.manual_seed(11)
    encoder = build_encoder(preset(encoder_name))
    heads = None if objective is None else build_objective(objective, encoder)
    if heads is not None:
        heads.after_step(1.0)  # the end of a run
    save_model(folder, encoder, heads, {})
    return folder


def recipe(model: Path, corpus: Path, **sections: Any) -> Recipe:
    tree: dict[str, Any] = {
        "start": {"model": str(model), **sections.pop("start", {})},
        "data": {"path": str(corpus), **DATA},
        "optim": {"lr": 1e-3},
        "training": {"updates": 2, "log_every": 1, "checkpoint_every": 1, **sections.pop("training", {})},
    }
    return parse_recipe({**tree, **sections}, "test")


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_encoder_objective_and_heads_come_from_the_model(corpus: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    resolved = recipe(model, corpus, encoder={"dropout": 0.0, "layerdrop": 0.3})
    assert resolved.encoder.dropout == 0.0  # type: ignore[union-attr]
    assert resolved.encoder.layerdrop == 0.3  # type: ignore[union-attr]
    assert resolved.encoder.width == 64  # type: ignore[union-attr]
    assert resolved.objective["num_codes"] == 8
    # a run that ended at 0.5 goes on at 0.5, not at 2
    assert resolved.objective["gumbel_temperature_start"] == 0.5
    train(resolved, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "start.json").read_text())
    assert "objective.quantizer.codebook" in report["taken"]
    assert report["fresh"] == []
    said = [row["message"] for row in fakes.read_log(tmp_path / "run", "start")]
    assert any("heads of wav2vec2 taken" in line and "objective.quantizer" in line for line in said)


def test_a_learning_rate_of_almost_nothing_leaves_the_models_weights(corpus: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    train(recipe(model, corpus, optim={"lr": 1e-12, "weight_decay": 0.0}), tmp_path / "run")
    before, after = load_file(model / "model.safetensors"), final_weights(tmp_path / "run")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-9)


def test_missing_heads_are_told_and_another_objective_is_possible(corpus: Path, tmp_path: Path) -> None:
    bare = write_model(tmp_path / "bare", objective=None)
    with pytest.raises(ConfigError, match="does not say which objective"):
        recipe(bare, corpus)
    train(recipe(bare, corpus, objective=OBJECTIVE), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "start.json").read_text())
    assert report["taken"] == []
    assert "objective.quantizer.codebook" in report["fresh"]
    assert "initialised afresh" in report["rule"]

    model = write_model(tmp_path / "model")
    wider = {**OBJECTIVE, "final_width": 40}
    train(recipe(model, corpus, objective=wider), tmp_path / "wider")
    report = json.loads((tmp_path / "wider" / "start.json").read_text())
    assert {"objective.project_targets.weight", "objective.project_context.weight"} <= set(report["fresh"])
    assert "objective.quantizer.codebook" in report["taken"]
    fresh = recipe(model, corpus, start={"heads": "fresh"}, training={"updates": 1})
    train(fresh, tmp_path / "fresh")
    assert json.loads((tmp_path / "fresh" / "start.json").read_text())["taken"] == []


def test_a_hugging_face_folder_tells_its_objective_by_its_heads(corpus: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        conv_dim=[16] * 7,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        num_codevectors_per_group=6,
        codevector_dim=12,
        proj_codevector_dim=20,
    )
    pretrained = transformers.Wav2Vec2ForPreTraining(config)
    pretrained.save_pretrained(tmp_path / "hf")
    resolved = recipe(tmp_path / "hf", corpus)
    assert resolved.objective["name"] == "wav2vec2"
    wanted = {"num_codebooks": 2, "num_codes": 6, "target_width": 12, "final_width": 20}
    assert {key: resolved.objective[key] for key in wanted} == wanted
    train(resolved.model_copy(update={"optim": resolved.optim.model_copy(update={"lr": 1e-12})}), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "start.json").read_text())["fresh"] == []
    after = final_weights(tmp_path / "run")["objective.quantizer.codebook"]
    torch.testing.assert_close(after, pretrained.quantizer.codevectors.detach(), rtol=0, atol=1e-7)


def test_headless_checkpoints_are_told_what_their_heads_are_made_of(corpus: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    w2v_bert = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(**sizes))
    w2v_bert.save_pretrained(tmp_path / "w2v-bert")
    _, report = start(tmp_path / "w2v-bert", {"name": "best_rq", "num_codes": 8, "code_width": 4})
    assert "random-projection targets" in report.rule
    assert report.taken == []
    assert {"objective.predictions.weight"} < set(report.fresh)
    assert any(name.startswith("objective.quantizer.") for name in report.fresh)

    small = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, **sizes}
    transformers.HubertModel(transformers.HubertConfig(**small)).save_pretrained(tmp_path / "hubert")
    _, report = start(tmp_path / "hubert", {"name": "hubert", "num_units": 6, "final_width": 8})
    assert "isogloss label" in report.rule
    assert "objective.heads.0.embeddings_CF" in report.fresh


def start(model: Path, objective: dict[str, Any]) -> tuple[Any, Any]:
    """Start a learner as a run does, with an objective that the checkpoint does not name."""
    loaded = load_model(model)
    torch.manual_seed(5)
    return start_learner(StartConfig(model=str(model)), loaded.encoder.config, objective)  # type: ignore[arg-type]


def test_what_is_frozen_does_not_move_and_the_rest_does(corpus: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    frozen = recipe(model, corpus, start={"frozen": ["frontend", "objective.quantizer"]})
    train(frozen, tmp_path / "run")
    before, after = load_file(model / "model.safetensors"), final_weights(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(("encoder.convolutions", "objective.quantizer")) for name in moved)
    assert {"encoder.projection.weight", "encoder.latent_norm.weight", "objective.project_targets.weight"} <= moved
    with pytest.raises(ConfigError, match="no parameter is called"):
        train(recipe(model, corpus, start={"frozen": ["encoder.layer.0"]}), tmp_path / "wrong")


def test_the_frontend_is_found_by_its_gradient() -> None:
    for name, prefix in (("wave-tiny", "convolutions."), ("cpc-tiny", ("convs.", "norms."))):
        encoder = build_encoder(preset(name))
        found = frontend_parameters(encoder)
        assert set(found) == {n for n, _ in encoder.named_parameters() if n.startswith(prefix)}
        assert all(parameter.requires_grad for parameter in encoder.parameters())
        assert encoder.training


def test_a_resumed_run_goes_on_and_does_not_start_anew(corpus: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    longer = {"updates": 4, "checkpoint_every": 2}
    train(recipe(model, corpus, training=longer), tmp_path / "whole")
    train(recipe(model, corpus, training=longer), tmp_path / "parted")
    # as if it had been killed after update 3
    shutil.rmtree(tmp_path / "parted" / "checkpoints" / "step_00000004")
    shutil.rmtree(tmp_path / "parted" / "model")
    train(recipe(model, corpus, training=longer), tmp_path / "parted")
    whole, parted = final_weights(tmp_path / "whole"), final_weights(tmp_path / "parted")
    assert all(torch.equal(whole[name], parted[name]) for name in whole)
    assert len(fakes.read_log(tmp_path / "parted", "resume")) == 1
    # the model may move …
    shutil.copytree(model, tmp_path / "moved")
    train(recipe(tmp_path / "moved", corpus, training=longer), tmp_path / "parted")
    # … and may not change
    loaded = load_model(model)
    with torch.no_grad():
        loaded.encoder.mask_embedding_D.add_(1.0)  # type: ignore[union-attr, operator]
    save_model(model, loaded.encoder, build_objective(OBJECTIVE, loaded.encoder), {})
    with pytest.raises(ConfigError, match=r"start\.sha256"):
        train(recipe(model, corpus, training=longer), tmp_path / "parted")


def test_the_schedule_and_the_moments_start_anew(corpus: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    train(recipe(model, corpus, training={"updates": 3}), tmp_path / "first")
    train(recipe(tmp_path / "first" / "model", corpus, training={"updates": 3}), tmp_path / "second")
    first, second = (fakes.read_log(tmp_path / name) for name in ("first", "second"))
    assert [row["step"] for row in second] == [1, 2, 3]
    assert [row["lr"] for row in second] == [row["lr"] for row in first]
    moments = load_file(tmp_path / "second" / "checkpoints" / "step_00000001" / "optimizer.safetensors")
    assert all(float(value) == 1.0 for name, value in moments.items() if name.endswith("/step"))


def test_sizes_cannot_change(corpus: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"differs in `encoder\.num_layers`"):
        train(recipe(model, corpus, encoder={"num_layers": 1}), tmp_path / "run")
    with pytest.raises(ConfigError, match="`encoder.kind` is 'cpc'"):
        recipe(model, corpus, encoder={"kind": "cpc"})


def test_the_command_line_starts_from_a_model(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model")
    settings = [f"data.{key}={value}" for key, value in DATA.items()] + ["training.updates=1", "encoder.dropout=0.0"]
    command = ["pretrain", "wav2vec2-base", "--from", str(model), "--data", str(corpus), "--out", str(tmp_path / "run")]
    command += [part for setting in settings for part in ("--set", setting)] + ["--freeze", "frontend"]
    with pytest.raises(SystemExit) as left:
        main(command)
    assert not left.value.code
    said = capsys.readouterr().err
    assert "starts from" in said
    assert "frozen: encoder.convolutions" in said
    config = load_model(tmp_path / "run" / "model").encoder.config.model_dump()
    assert (config["width"], config["dropout"], config["conv_channels"][0]) == (64, 0.0, 64)
