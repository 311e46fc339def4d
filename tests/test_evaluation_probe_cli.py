"""Splits hold out what they say; the command line measures a model beside its controls and writes what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.supervision import AlignmentItem
from typer.testing import CliRunner

from isogloss.cli import extract as extract_cli
from isogloss.cli import probe as probe_cli
from isogloss.core.errors import ConfigError, DataError
from isogloss.data.inputs import open_corpus, write_corpus
from isogloss.encoders.presets import build_encoder, preset
from isogloss.evaluation.aligner import AlignerSettings
from isogloss.evaluation.probe_corpus import with_phones
from isogloss.evaluation.probe_splits import limit_seconds, split_for_probe
from isogloss.evaluation.quick import measurable, quick_probe
from isogloss.evaluation.tables import read_results
from isogloss.hub.save import save_model
from planted import make_cut

RATE = 16_000
TONES = {"a": 300.0, "e": 900.0, "i": 2000.0}


def tone_corpus(folder: Path, num_speakers: int = 3) -> list[MonoCut]:
    """Two languages of tones that differ in loudness modulation, three speakers each, exact alignments."""
    rng = np.random.default_rng(0)
    cuts = []
    for language in ("fra", "deu"):
        for speaker in range(num_speakers):
            for number in range(3):
                name = f"{language}-{speaker}-{number}"
                items, parts = [], []
                for position in range(4):
                    phone = str(rng.choice(list(TONES)))
                    times = np.arange(3200) / RATE
                    wave = np.sin(2 * np.pi * TONES[phone] * (1 + 0.02 * speaker) * times)
                    parts.append(wave * (np.sin(2 * np.pi * 40 * times) if language == "deu" else 1.0))
                    items.append(AlignmentItem(phone, round(position * 0.2, 3), 0.2))
                samples = (0.2 * np.concatenate(parts) + 0.01 * rng.normal(size=12_800)).astype(np.float32)
                path = folder / "audio" / f"{name}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, samples, RATE)
                recording = Recording(name, [AudioSource("file", [0], str(path))], RATE, 12_800, 0.8, channel_ids=[0])
                supervision = SupervisionSegment(
                    name, name, 0, 0.8, text=" ".join(i.symbol for i in items), language=language,
                    speaker=f"{language}{speaker}", alignment={"phone": items},
                )  # fmt: skip
                custom = {"alignment_kind": "synthetic", "synthetic": True, "source": "tones"}
                cuts.append(MonoCut(name, 0.0, 0.8, 0, [supervision], recording=recording, custom=custom))
    write_corpus(cuts, folder)
    return list(open_corpus(folder))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    tone_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, build_encoder(preset("wave-tiny")), None, {})
    return folder


def named_cut(name: str, language: str, speaker: str, source: str, seconds: float = 10.0, given: str = "") -> MonoCut:
    cut = make_cut(name, [("a", 0.0, seconds)], speaker)
    cut.supervisions[0].language = language
    cut.custom = {"source": source, **({"split": given} if given else {})}
    cut.recording = Recording(name, [AudioSource("file", [0], f"/{name}.wav")], RATE, int(seconds * RATE), seconds)
    return cut


def test_speaker_split_holds_out_a_speaker_of_every_language_that_has_two() -> None:
    cuts = [
        named_cut(f"{lang}{s}-{i}", lang, f"{lang}{s}", "x")
        for lang, n in (("a", 4), ("b", 2), ("c", 1))
        for s in range(n)
        for i in range(5)
    ]
    splits, told = split_for_probe(cuts, "speaker")
    assert "speakers are not in training" in told
    speakers = [{c.supervisions[0].speaker for c in part} for part in (splits.train, splits.dev, splits.test)]
    assert not speakers[0] & speakers[2]
    assert not speakers[1] & speakers[2]
    assert {c.supervisions[0].language for c in splits.test} == {"a", "b"}
    assert len(splits.train) + len(splits.dev) + len(splits.test) == len(cuts)
    again, _ = split_for_probe(cuts[::-1], "speaker")
    assert {c.id for c in again.test} == {c.id for c in splits.test}


def test_source_split_tests_languages_that_training_keeps() -> None:
    cuts = [
        named_cut(f"r{lang}{i}", lang, f"r{lang}", f"radio-{lang}") for lang in ("fr", "es", "it") for i in range(6)
    ]
    cuts += [named_cut(f"f{lang}{i}", lang, f"f{lang}", "field") for lang in ("fr", "es", "ru") for i in range(4)]
    splits, _ = split_for_probe(cuts, "source")
    kept = {c.custom["source"] for c in (*splits.train, *splits.dev)}
    tested = {c.custom["source"] for c in splits.test}
    assert tested in ({"field"}, {"radio-fr", "radio-es"})
    assert not kept & tested
    assert {c.supervisions[0].language for c in splits.test} == {"fr", "es"}
    with pytest.raises(DataError, match="two sources"):
        split_for_probe([c for c in cuts if c.supervisions[0].language == "it"], "source")


def test_auto_prefers_the_given_split_then_speakers_then_recordings() -> None:
    given = [named_cut(str(i), "a", f"s{i % 3}", "x", given=("train", "valid", "test")[i % 3]) for i in range(9)]
    splits, told = split_for_probe(given)
    assert told == "the corpus's own split"
    assert [c.id for c in splits.dev] == ["1", "4", "7"]
    one = [named_cut(str(i), "a", "only", "x") for i in range(20)]
    splits, told = split_for_probe(one)
    assert "their speakers may be" in told
    assert len(splits.test) >= 2
    with pytest.raises(DataError, match="every language has one speaker"):
        split_for_probe(one, "speaker")


def test_sample_of_seconds_does_not_depend_on_order() -> None:
    cuts = [named_cut(str(i), "a", "s", "x") for i in range(30)]
    sample = limit_seconds(cuts, 100.0)
    assert len(sample) == 10
    assert {c.id for c in limit_seconds(cuts[::-1], 100.0)} == {c.id for c in sample}
    assert limit_seconds(cuts, 1e9) == cuts


def test_silver_labels_are_kept(corpus: Path, tmp_path: Path) -> None:
    cuts = list(open_corpus(corpus))
    settings = AlignerSettings(width=16, num_blocks=1, min_updates=10)
    first, told = with_phones(cuts, "ipa", cache_dir=tmp_path, settings=settings)
    assert "silver" in told
    again, told = with_phones(cuts, "ipa", cache_dir=tmp_path, settings=settings)
    assert "kept in" in told
    items = [[c.supervisions[0].alignment["phone"] for c in part] for part in (first, again)]
    assert [[i.start for i in row] for row in items[0]] == [[i.start for i in row] for row in items[1]]
    own, _ = with_phones(cuts)
    assert len(own) == len(cuts)
    for cut in cuts:
        cut.supervisions[0].alignment = None
    with pytest.raises(DataError, match="--labels espeak"):
        with_phones(cuts, "alignment")


def test_quick_probe_is_a_dictionary_of_figures(corpus: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(preset("wave-tiny"))
    encoder.train()
    cuts = list(open_corpus(corpus))
    figures = quick_probe(encoder, cuts)
    assert encoder.training
    assert set(figures) == {"probe/phone_accuracy", "probe/phone_layer", "probe/language_accuracy", "probe/seconds"}
    assert figures["probe/phone_accuracy"] > 0.6  # tones pass through a random convolution stack
    again = quick_probe(encoder, cuts[::-1])
    assert again["probe/phone_accuracy"] == figures["probe/phone_accuracy"]
    assert measurable(cuts)[0] == f"phones of {len(cuts)} utterances"
    assert measurable(cuts)[1].startswith("languages (")
    for cut in cuts:
        cut.supervisions[0].language = "pl"
    assert [found.split()[0] for found in measurable(cuts)] == ["phones"]
    assert "probe/language_accuracy" not in quick_probe(encoder, cuts)
    for cut in cuts:
        cut.supervisions[0].alignment = None
    assert measurable(cuts) == []
    assert set(quick_probe(encoder, cuts)) == {"probe/seconds"}


def phones_of(model: Path, corpus: Path, out: Path) -> list[str]:
    return ["phones", "--from", str(model), "--data", str(corpus), "--out", str(out)]


def test_learned_layer_weights_from_the_command_line(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    arguments = [*phones_of(model, corpus, out), "--against", "mfcc", "--weighted"]
    result = CliRunner().invoke(probe_cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "layer weights of tiny: 0: 0." in result.output
    records = {record.system: record for record in read_results(out)}
    assert set(records) == {"tiny", "mfcc", "tiny − mfcc", "tiny, weighted layers", "tiny, weighted layers − tiny"}
    mixture = records["tiny, weighted layers"]
    assert mixture.meta["layer"] == "weighted"
    assert sum(mixture.meta["weights"].values()) == pytest.approx(1.0)
    assert mixture.value > 0.6
    for wrong in (["--against", "mfcc"], ["--from", str(model), "--layer", "1"]):
        with pytest.raises(ConfigError, match="`--weighted` weighs layers"):
            CliRunner().invoke(
                probe_cli.app, ["phones", "--data", str(corpus), "--weighted", *wrong], catch_exceptions=False
            )


def test_phones_from_the_command_line(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    arguments = [*phones_of(model, corpus, out), "--cache", str(tmp_path / "c")]
    result = CliRunner().invoke(probe_cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    records = {(r.system, r.metric): r for r in read_results(out)}
    assert {system for system, metric in records if metric == "accuracy"} == {"tiny", "mel", "mfcc", "untrained"}
    assert {system for system, metric in records if metric == "accuracy_difference"} == {
        "tiny − mel", "tiny − mfcc", "tiny − untrained",
    }  # fmt: skip
    mel = records["mel", "accuracy"]
    assert mel.value > 0.5  # chance is a third
    assert mel.labels == "synthetic"
    assert mel.synthetic_speech
    assert mel.search_budget == 3
    assert records["tiny", "accuracy"].search_budget == 9  # three layers
    difference = records["tiny − mel", "accuracy_difference"]
    assert difference.value == pytest.approx(records["tiny", "accuracy"].value - mel.value)
    assert "tiny" in result.stdout


def test_ctc_and_lid_from_the_command_line(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    common = ["--data", str(corpus), "--against", "mel", "--out", str(out)]
    runner = CliRunner()
    assert runner.invoke(probe_cli.app, ["ctc", *common, "--epochs", "1"], catch_exceptions=False).exit_code == 0
    result = runner.invoke(probe_cli.app, ["lid", *common], catch_exceptions=False)
    assert result.exit_code == 0
    assert "held-out sources needs" in result.stdout
    metrics = [(r.task, r.metric) for r in read_results(out)]
    assert ("phones, CTC", "per") in metrics
    assert ("language, linear, held-out speaker", "accuracy") in metrics
    assert ("language, knn, held-out speaker", "macro_f1") in metrics


@pytest.mark.parametrize("verb", [("phones",), ("ctc", "--epochs", "1")])
def test_two_models_are_compared_in_pairs(verb: tuple[str, ...], corpus: Path, model: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_model(tmp_path / "other", build_encoder(preset("wave-tiny")), None, {})
    out, common = tmp_path / "results.jsonl", ["--data", str(corpus), "--against", "", "--layer", "1"]
    pair = ["--from", str(model), "--versus", str(tmp_path / "other"), "--out", str(out)]
    assert CliRunner().invoke(probe_cli.app, [*verb, *common, *pair], catch_exceptions=False).exit_code == 0
    found = {r.system: r for r in read_results(out) if r.metric.startswith(("accuracy", "per"))}
    assert set(found) == {"tiny", "other", "tiny − other"}
    assert found["tiny"].value != found["other"].value
    assert found["tiny − other"].value == pytest.approx(found["tiny"].value - found["other"].value)


def test_extract_writes_files_that_numpy_opens(corpus: Path, model: Path, tmp_path: Path) -> None:
    arguments = ["--from", str(model), "--data", str(corpus), "--out", str(tmp_path), "--layer", "0", "--layer", "-1"]
    assert CliRunner().invoke(extract_cli.app, arguments, catch_exceptions=False).exit_code == 0
    entries = [json.loads(line) for line in (tmp_path / "features.jsonl").read_text().splitlines()]
    assert len(entries) == 2 * len(list(open_corpus(corpus)))
    for entry in entries[:4]:
        assert np.load(tmp_path / entry["file"]).shape == (entry["num_frames"], 64)
    assert entries[0]["frame_rate_hz"] == 50.0
    assert entries[0]["first_center_seconds"] == pytest.approx(0.0125)


def test_mistakes_are_one_sentence(corpus: Path) -> None:
    for arguments, message in (
        (["phones", "--data", str(corpus), "--against", "melt"], "`melt`"),
        (["phones", "--data", str(corpus), "--against", "untrained"], "needs a model to be like"),
        (["phones", "--data", str(corpus), "--against", ""], "nothing to measure"),
        (["ctc", "--data", str(corpus), "--layer", "3"], "`--layer` chooses"),
        (["lid", "--data", str(corpus), "--layer", "3"], "`--layer` chooses"),
        *(([verb, "--data", str(corpus), "--versus", "x"], "`--versus` compares") for verb in ("phones", "ctc", "lid")),
        (["lid", "--data", str(corpus), "--plot", "curve.svg"], "`--plot` belongs to few-shot"),
        (["lid", "--data", str(corpus), "--draws", "2"], "`--draws` belongs to few-shot"),
        (["lid", "--data", str(corpus), "--heads", "2"], "`--heads` belongs to few-shot"),
        (["lid", "--data", str(corpus), "--shots", "1,2", "--split", "both"], "hold out speakers or sources"),
        (["lid", "--data", str(corpus), "--shots", "1,2", "--plot", "curve.png"], "must be an .svg"),
        (["phones", "--data", str(corpus), "--split", "random"], "`--split` must be one of"),
        (["lid", "--data", str(corpus), "--split", "random"], "`--split` must be speaker"),
    ):
        with pytest.raises(ConfigError, match=message):
            CliRunner().invoke(probe_cli.app, arguments, catch_exceptions=False)
