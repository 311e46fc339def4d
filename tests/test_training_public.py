"""Going on from public checkpoints with the command line: which heads are taken, which are made by which rule, and that it says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import training_fakes as fakes
from isogloss.cli.main import main
from isogloss.data.units import CLUSTERS
from isogloss.labelling.label import read_clusters

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CODES = {"num_codevectors_per_group": 6, "codevector_dim": 12, "proj_codevector_dim": 20}
WAVE = {**SIZES, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
DATA2VEC = {**SIZES, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 2, "num_conv_pos_embedding_groups": 2}
RECIPE = """
[objective]
{objective}
[data]
seconds_per_update = 3.2
micro_batch_seconds = 1.6
min_seconds = 0.3
max_seconds = 1.2
num_workers = 0
[optim]
lr = 1e-12
weight_decay = 0.0
[training]
updates = 1
"""
OWN_LAYER = """
[labels]
features = "model"
layer = 1
num_units = 5
fit_share = 1.0
"""


class Case(NamedTuple):
    """A checkpoint, the recipe's own part, and what the command must say of it."""

    model: str
    sizes: dict[str, Any]
    objective: str
    labels: str
    taken: set[str]  # modules
    fresh: set[str]
    rule: str


CASES = {
    "wav2vec 2.0 with its quantizer": Case(
        "Wav2Vec2ForPreTraining",
        {**WAVE, **CODES},
        "",
        "",
        {"quantizer", "quantizer.logits", "project_targets", "project_context"},
        set(),
        "",
    ),
    "wav2vec 2.0 without": Case(
        "Wav2Vec2Model",
        WAVE,
        'name = "wav2vec2"\nnum_codes = 6\ntarget_width = 12\nfinal_width = 20',
        "",
        set(),
        {"quantizer", "quantizer.logits", "project_targets", "project_context"},
        "they are initialised afresh",
    ),
    "HuBERT without its head": Case(
        "HubertModel",
        WAVE,
        'name = "hubert"\nfinal_width = 8',
        OWN_LAYER,
        set(),
        {"heads.0"},
        "cluster its own layer",
    ),
    "WavLM": Case(
        "WavLMModel",
        WAVE,
        'name = "wavlm"\nfinal_width = 8',
        OWN_LAYER,
        set(),
        {"heads.0"},
        "cluster its own layer",
    ),
    "data2vec": Case(
        "Data2VecAudioModel",
        DATA2VEC,
        'name = "data2vec"\ntop_layers = 2',
        "",
        set(),
        {"project", "teacher.model"},
        "the teacher copies the encoder, the heads are initialised afresh",
    ),
    "w2v-BERT 2.0, random projections": Case(
        "Wav2Vec2BertModel",
        SIZES,
        'name = "best_rq"\nnum_codes = 8\ncode_width = 4',
        "",
        set(),
        {"predictions", "quantizer"},
        "random-projection targets",
    ),
    "w2v-BERT 2.0, clustered": Case(
        "Wav2Vec2BertModel",
        SIZES,
        'name = "hubert"\nfinal_width = 8',
        OWN_LAYER,
        set(),
        {"heads.0"},
        "cluster its own layer",
    ),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.make_corpus(tmp_path_factory.mktemp("corpus"), 10)


@pytest.mark.parametrize("name", CASES)
def test_the_command_says_what_it_took_and_what_it_made(
    name: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    model_class: Callable[[Any], Any] = getattr(transformers, case.model)
    theirs = model_class(model_class.config_class(**case.sizes))  # type: ignore[attr-defined]
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "recipe.toml").write_text(RECIPE.format(objective=case.objective) + case.labels)
    command = ["pretrain", str(tmp_path / "recipe.toml"), "--from", str(tmp_path / "theirs"), "--data", str(corpus)]
    with pytest.raises(SystemExit) as left:
        main([*command, "--out", str(tmp_path / "run")])
    assert not left.value.code
    said = capsys.readouterr().err
    report = json.loads((tmp_path / "run" / "start.json").read_text())
    for modules, tensors, words in (
        (case.taken, report["taken"], "taken from it"),
        (case.fresh, report["fresh"], "not in it"),
    ):
        (line,) = [line for line in said.splitlines() if words in line] or [""]
        assert bool(line) == bool(modules)
        for module in modules:
            assert f"objective.{module}" in line
            assert any(tensor.startswith(f"objective.{module}") for tensor in tensors)
    assert not [tensor for tensor in report["fresh"] if tensor.startswith("encoder.")]
    assert case.rule in report["rule"]
    assert case.rule in said
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for tensor in report["taken"]:
        assert tensor in after
    if case.labels:
        convention = read_clusters(tmp_path / "run" / "model" / CLUSTERS)[1]
        assert (convention["features"], convention["layer"], convention["num_units"]) == ("model", 1, 5)
    if name == "data2vec":
        for tensor in report["fresh"]:
            if tensor.startswith("objective.teacher.model."):
                own = tensor.replace("objective.teacher.model.", "encoder.")
                torch.testing.assert_close(after[tensor], after[own], rtol=0, atol=1e-6)
