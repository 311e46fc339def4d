"""From recordings to a table of units and on to crops: times that agree, pieces that resume, tables that are refused."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from isogloss.cli.main import main
from isogloss.core.errors import ConfigError, DataError
from isogloss.core.lengths import ConvGeometry
from isogloss.data.audio import read_audio
from isogloss.data.index import CorpusIndex
from isogloss.data.units import CLUSTERS, UnitTable
from isogloss.encoders.presets import build_encoder, preset
from isogloss.hub.save import read_extra, save_model
from isogloss.labelling.features import LayerFeatures, SpectralFeatures
from isogloss.labelling.iterations import run_iterations
from isogloss.labelling.label import label_corpus, read_clusters
from isogloss.training.iterations import LabelConfig, load_iterations
from isogloss.training.job import build_job
from small_corpus import speech_corpus

WAVE = ConvGeometry((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
MFCC = ConvGeometry((400,), (160,))
PADDED_40_MS = ConvGeometry((400, 3, 3), (160, 2, 2), (0, 1, 1))


@pytest.mark.parametrize(
    ("labelled", "frames"), [(MFCC, WAVE), (WAVE, WAVE), (MFCC, PADDED_40_MS), (WAVE, PADDED_40_MS)]
)
def test_a_ramp_of_times_comes_back_within_a_frame_from_random_crops(
    tmp_path: Path, labelled: ConvGeometry, frames: ConvGeometry
) -> None:
    """A label is the time of its own frame, in units of 10 samples: the crop's labels must be its frames' times."""
    num_samples = 48_000
    ramp = [round(1600 * labelled.center_seconds(i, 16_000)) for i in range(labelled.num_frames(num_samples))]
    table = UnitTable.write(tmp_path / "units", [("u", ramp)], geometry=labelled, num_units=10_000).for_frames(frames)
    draws = np.random.default_rng(0)
    for _ in range(200):
        length = int(draws.integers(4_000, 30_000))
        start = int(draws.integers(0, num_samples - length))
        n = frames.num_frames(length)
        times = torch.tensor([start + 16_000 * frames.center_seconds(t, 16_000) for t in range(n)])
        found = table.crop("u", start, n) * 10
        assert len(found) == n
        error = (found - times).abs()
        assert float(error[1:-1].max()) <= labelled.hop / 2 + 10, "the nearest label"
        assert float(error.max()) <= frames.hop, "at the ends of the recording the nearest there is"


def test_labels_coarser_than_frames_are_refused(tmp_path: Path) -> None:
    table = UnitTable.write(tmp_path / "units", [("u", [0, 1])], geometry=WAVE, num_units=2)
    with pytest.raises(DataError, match="same rate or a higher one"):
        table.for_frames(MFCC)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return speech_corpus(tmp_path / "corpus", [16_000, 12_345, 24_000, 8_000, 16_000, 20_000, 9_000, 16_000])


def test_labels_are_the_nearest_clusters_of_the_features(corpus: Path, tmp_path: Path) -> None:
    made = label_corpus(LabelConfig(num_units=6, fit_share=0.5), corpus, tmp_path / "units")
    clusters, convention = read_clusters(tmp_path / "units" / CLUSTERS)
    assert (convention["features"], convention["hop"]) == ("mfcc", 160)
    index = CorpusIndex.open(corpus)
    features = SpectralFeatures("mfcc", normalize=False)
    for row in range(len(index)):
        cut = index.cut(row)
        (values_SD,) = features([torch.from_numpy(read_audio(cut))])
        nearest = torch.cdist(values_SD.double(), clusters.centroids_CD.double()).argmin(1)
        found = made.table.labels(cut.id)
        assert len(found) == MFCC.num_frames(cut.num_samples)
        assert float((found == nearest).double().mean()) > 0.999
    assert made.num_used == 6
    assert 1 < made.perplexity <= 6
    assert not (tmp_path / "units.work").exists()
    with pytest.raises(DataError, match="holds something else"):
        label_corpus(LabelConfig(num_units=6), corpus, corpus)


def test_another_corpus_is_labelled_with_the_same_clusters(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label_corpus(LabelConfig(num_units=6, normalize=True), corpus, tmp_path / "units")
    other = speech_corpus(tmp_path / "other", [10_000, 14_000, 9_000])
    with pytest.raises(SystemExit) as left:
        main(["label", "--data", str(other), "--clusters", str(tmp_path / "units"), "--out", str(tmp_path / "same")])
    told = capsys.readouterr()
    assert not left.value.code, told.err
    assert f"clusters of {tmp_path / 'units'}; " in told.out
    assert "mean squared distance" not in told.out, "that would be the distance in the corpus they were fitted on"
    table = UnitTable(tmp_path / "same")
    (first, fitted_on), (second, kept) = (read_clusters(tmp_path / name / CLUSTERS) for name in ("units", "same"))
    assert torch.equal(first.centroids_CD, second.centroids_CD)
    assert kept == fitted_on
    assert (fitted_on["corpus"], table.header["convention"]["corpus"]) == tuple(
        CorpusIndex.open(place).manifest for place in (corpus, other)
    )
    cut = CorpusIndex.open(other).cut(1)
    (values_SD,) = SpectralFeatures("mfcc", normalize=True)([torch.from_numpy(read_audio(cut))])
    assert torch.equal(table.labels(cut.id), first.assign(values_SD))
    config = LabelConfig(num_units=6, normalize=False, clusters=str(tmp_path / "units"))
    with pytest.raises(DataError, match=r"of other features: `normalize` \(was True, is False\)"):
        label_corpus(config, other, tmp_path / "no")
    config = LabelConfig(num_units=7, normalize=True, clusters=str(tmp_path / "units"))
    with pytest.raises(DataError, match="must be 6, the number of clusters"):
        label_corpus(config, other, tmp_path / "no")


def test_a_stopped_run_goes_on_and_makes_the_same_table(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LabelConfig(num_units=5, fit_share=1.0)
    monkeypatch.setattr("isogloss.labelling.label._PIECE", 3)
    whole = label_corpus(config, corpus, tmp_path / "whole").table

    def stop_in(where: str, name: str, done: int, total: int) -> None:
        if name == where and done == 2:
            raise KeyboardInterrupt

    for where in ("features", "labels"):
        with pytest.raises(KeyboardInterrupt):
            label_corpus(config, corpus, tmp_path / "units", progress=functools.partial(stop_in, where))
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "units.work").glob("features_*")}
    assert kept
    with pytest.raises(DataError, match="`num_units`"):
        label_corpus(LabelConfig(num_units=6, fit_share=1.0), corpus, tmp_path / "units")
    table = label_corpus(config, corpus, tmp_path / "units").table
    assert table.header["sha256"] == whole.header["sha256"]
    before = (tmp_path / "units" / "labels.bin").stat().st_mtime_ns
    label_corpus(config, corpus, tmp_path / "units")
    assert (tmp_path / "units" / "labels.bin").stat().st_mtime_ns == before, "a finished table is kept"
    with pytest.raises(DataError, match="other settings: `num_units`"):
        label_corpus(LabelConfig(num_units=6, fit_share=1.0), corpus, tmp_path / "units")


def test_layers_are_block_outputs_of_whole_utterances(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(preset("wave-tiny")).eval()
    features = LayerFeatures(encoder, -1, normalize=False, device=torch.device("cpu"))
    assert features.convention["layer"] == encoder.num_layers
    waves = [torch.randn(9_000), torch.randn(100), torch.randn(5_000)]
    found = features(waves)
    assert [len(values) for values in found] == [encoder.num_frames(n) for n in (9_000, 100, 5_000)]
    with torch.no_grad():
        alone = encoder([waves[2]]).last.values_ND
    torch.testing.assert_close(found[2], alone, rtol=1e-4, atol=1e-5)


RECIPE = """
encoder = "wave-tiny"
[objective]
name = "hubert"
final_width = 16
[data]
seconds_per_update = 3.0
micro_batch_seconds = 3.0
min_seconds = 0.2
max_seconds = 3.0
num_workers = 0
[training]
updates = 2
[labels]
num_units = 5
fit_share = 1.0
[[iterations]]
labels = { features = "mfcc" }
[[iterations]]
labels = { features = "model", layer = 1, num_units = 4 }
training = { updates = 3 }
"""


def test_what_clusters_decide_is_said_once(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label_corpus(LabelConfig(num_units=5, fit_share=1.0), corpus, tmp_path / "units")
    (tmp_path / "two.toml").write_text(RECIPE)

    def label(*arguments: object) -> str:
        with pytest.raises(SystemExit) as left:
            main(["label", *map(str, arguments), "--data", str(corpus), "--clusters", str(tmp_path / "units")])
        return capsys.readouterr().err if left.value.code else ""

    out, recipe = ("--out", tmp_path / "again"), tmp_path / "two.toml"
    for fitting in (("--fit-share", "0.5"), (recipe, "--set", "labels.fit_share=0.5")):
        assert re.search(r"(label|two\.toml): fit_share must be left out with clusters", label(*fitting, *out))
    with pytest.raises(ValueError, match="seed and restarts must be left out"):
        LabelConfig(num_units=5, clusters="there", seed=2, restarts=3)
    told = label(recipe, "--iteration", 2, *out)
    assert "clusters of" in told
    assert "features = 'mfcc' (not 'model'), layer = None (not 1), num_units = 5 (not 4)" in " ".join(told.split())
    assert "num_units = 5 (not 7)" in " ".join(label("--num-units", 7, *out).split())
    assert not (tmp_path / "again").exists()
    assert label(recipe, *out) == "", "how the recipe fits its own clusters does not matter"


def test_two_iterations_run_in_one_folder_and_resume(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(RECIPE)
    turns = load_iterations(tmp_path / "two.toml", [f"data.path={json.dumps(str(corpus))}", "training.log_every=1"])
    assert [turn.recipe.objective["num_units"] for turn in turns] == [5, 4]
    assert [turn.recipe.training.updates for turn in turns] == [2, 3]
    run_iterations(
        turns[:1] * 1, tmp_path / "run" / "1"
    )  # a first part of the whole, stopped before the second iteration
    result = run_iterations(turns, tmp_path / "run")
    assert result.step == 3
    assert result.model_dir == tmp_path / "run" / "2" / "model"
    assert read_clusters(result.model_dir / CLUSTERS)[1]["layer"] == 1
    assert read_extra(result.model_dir)["units"]["num_units"] == 4
    model = (result.model_dir / "model.safetensors").read_bytes()
    assert run_iterations(turns, tmp_path / "run").step == 3
    assert (result.model_dir / "model.safetensors").read_bytes() == model
    first = [json.loads(line) for line in (tmp_path / "run" / "1" / "log.jsonl").read_text().splitlines()]
    assert sum(entry.get("kind") == "update" or "loss" in entry for entry in first) == 2, "trained once"


def test_what_the_command_line_sets_comes_on_top_of_iterations(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(RECIPE)
    turns = load_iterations(tmp_path / "two.toml", ["training.updates=7", "labels.fit_share=0.3"])
    assert [turn.recipe.training.updates for turn in turns] == [7, 7]
    assert [turn.labels.fit_share for turn in turns if turn.labels] == [0.3, 0.3]
    with pytest.raises(ConfigError, match="copy the recipe"):
        load_iterations(tmp_path / "two.toml", ["iterations=3"])


def test_wrong_tables_are_refused_before_training(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(RECIPE)
    base = load_iterations(tmp_path / "two.toml", [f"data.path={json.dumps(str(corpus))}"])[0].recipe

    def job(units: Path | None) -> None:
        build_job(base.model_copy(update={"data": base.data.model_copy(update={"units": units and str(units)})}))

    with pytest.raises(ConfigError, match="isogloss label"):
        job(None)
    label_corpus(LabelConfig(num_units=6, fit_share=1.0), corpus, tmp_path / "six")
    with pytest.raises(ConfigError, match=r"objective.num_units=6"):
        job(tmp_path / "six")
    other = speech_corpus(tmp_path / "other", [16_000] * 4)
    label_corpus(LabelConfig(num_units=5, fit_share=1.0), other, tmp_path / "few")
    with pytest.raises(DataError, match="labels of 4 of the 8 utterances"):
        job(tmp_path / "few")
    shorter = speech_corpus(tmp_path / "shorter", [16_000, 12_345, 24_000, 8_000, 16_000, 20_000, 9_000, 4_000])
    label_corpus(LabelConfig(num_units=5, fit_share=1.0), shorter, tmp_path / "short")
    with pytest.raises(DataError, match="another length"):
        job(tmp_path / "short")


def test_labels_need_what_they_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layer must be given"):
        LabelConfig(num_units=5, features="model")
    with pytest.raises(ValueError, match="model must be left out"):
        LabelConfig(num_units=5, model="there")
    (tmp_path / "two.toml").write_text(RECIPE.replace('features = "mfcc"', 'features = "model", layer = 1'))
    turns = load_iterations(tmp_path / "two.toml", ['data.path="x"'])
    with pytest.raises(ConfigError, match="no model before it"):
        run_iterations(turns, tmp_path / "run")


def test_a_model_without_heads_goes_on_with_the_units_of_its_own_layer(corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(tmp_path / "bare", build_encoder(preset("wave-tiny")), None, {})
    text = RECIPE.partition("[[iterations]]")[0].replace('encoder = "wave-tiny"', "")
    text = text.replace("[labels]", '[labels]\nfeatures = "model"\nlayer = 1')
    (tmp_path / "own.toml").write_text(text)
    settings = [f"data.path={json.dumps(str(corpus))}", f"start.model={json.dumps(str(tmp_path / 'bare'))}"]
    (turn,) = load_iterations(tmp_path / "own.toml", settings)
    result = run_iterations([turn], tmp_path / "run")
    convention = read_clusters(result.model_dir / CLUSTERS)[1]
    assert (convention["layer"], convention["num_units"]) == (1, 5)
    report = json.loads((tmp_path / "run" / "start.json").read_text())
    assert sorted(report["fresh"]) == [
        f"objective.heads.0.{n}" for n in ("embeddings_CF", "projection.bias", "projection.weight")
    ]
    assert "cluster its own layer" in report["rule"]
