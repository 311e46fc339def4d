"""A model that depends on the language is measured, and exported, as it is for one; without one, the results say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from isogloss.adapt.loss_measure import loss_measure
from isogloss.cli.main import main
from isogloss.data.units import UnitTable
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import GatesConfig, LoraConfig, MasksConfig, edits_of, fixed_to, install
from isogloss.encoders.presets import build_encoder, preset
from isogloss.evaluation.feature_cache import hash_encoder
from isogloss.evaluation.feature_files import read_feature_files
from isogloss.evaluation.tables import read_results
from isogloss.hub.load import load_encoder
from isogloss.hub.save import save_model
from isogloss.nn.edits import Gate, WeightMask
from isogloss.objectives.base import build_objective
from small_corpus import speech_corpus, write_cuts

RATE = 16_000
LANGUAGES = ("cs", "sw")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two languages of three speakers with three utterances of tones, and a CTM that says where they are."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    metadata, ctm = ["file_name,text,language,speaker"], []
    time = np.arange(int(0.1 * RATE)) / RATE
    for number in range(18):
        language, speaker = LANGUAGES[number % 2], f"s{number % 6}"
        phones = rng.choice(["a", "e", "o"], 6)
        parts = [np.sin(2 * np.pi * (300.0 + 500 * "aeo".index(p) + 40 * (number % 6)) * time) for p in phones]
        audio = 0.2 * np.concatenate(parts) + rng.normal(0, 0.02, 6 * len(time))
        soundfile.write(folder / f"u{number:02d}.wav", audio.astype(np.float32), RATE)
        metadata.append(f"u{number:02d}.wav,{' '.join(phones)},{language},{speaker}")
        ctm += [f"u{number:02d} 1 {0.1 * k:.3f} 0.100 {p}" for k, p in enumerate(phones)]
    (folder / "metadata.csv").write_text("\n".join(metadata) + "\n")
    (folder / "phones.ctm").write_text("\n".join(ctm) + "\n")
    return folder


def tiny() -> Encoder:
    torch.manual_seed(0)
    return build_encoder(preset("wave-tiny"))


def gated() -> Encoder:
    encoder = tiny()
    install(encoder, GatesConfig(languages=LANGUAGES))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for edit in edits_of(encoder).values():
            assert isinstance(edit, Gate)
            for parameter in edit.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=random))
    return encoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "gated"
    save_model(folder, gated(), None, {})
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "plain"
    save_model(folder, tiny(), None, {})
    return folder


def test_the_key_of_kept_features_has_the_language() -> None:
    encoder = gated()
    keys = {hash_encoder(own) for own in (encoder, *map(encoder.for_language, LANGUAGES))}
    assert len(keys) == 3
    assert hash_encoder(encoder.for_language("cs")) == hash_encoder(encoder.for_language("ces"))


def test_extract_writes_the_states_of_a_language(
    corpus: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for language in (None, *LANGUAGES):
        chosen = [] if language is None else ["--for-language", language]
        assert run("extract", "--from", model, "--data", corpus, "--out", tmp_path / str(language), *chosen) == 0
        told = capsys.readouterr().err
        assert ("measured without its gates" in told and "cs, sw" in told) == (language is None)
        found[language] = read_feature_files(tmp_path / str(language))["u00", 2]
        encoder = load_encoder(model)
        own = encoder if language is None else encoder.for_language(language)
        wave_T = torch.from_numpy(soundfile.read(corpus / "u00.wav", dtype="float32")[0])
        expected = own([own.prepare(wave_T)]).states[2].values_ND
        np.testing.assert_allclose(found[language], expected.detach().numpy(), atol=5e-3)
    assert np.abs(found["cs"] - found["sw"]).max() > 0.1


def test_labels_are_those_of_a_language(
    corpus: Path, model: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["label", "--data", corpus, "--layer", "2", "--num-units", "8", "--from"]
    assert run(*common, model, "--out", tmp_path / "none") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "trained with its gates" in told
    assert "name one with `--for-language` (`labels.language`) of cs, sw" in told
    assert run(*common, plain, "--for-language", "cs", "--out", tmp_path / "plain") == 2
    assert "is the same for all languages" in capsys.readouterr().err
    for language in LANGUAGES:
        assert run(*common, model, "--for-language", language, "--out", tmp_path / language) == 0
        header = UnitTable(tmp_path / language).header
        assert header["convention"]["model_sha256"] == hash_encoder(load_encoder(model).for_language(language))


@pytest.mark.parametrize(
    "verb",
    [
        ("probe", "phones", "--layer", "1"),
        ("probe", "ctc", "--epochs", "1"),
        ("probe", "lid", "--split", "speaker", "--layer", "1"),
        ("probe", "lid", "--shots", "1", "--draws", "1", "--heads", "1", "--layer", "1"),
        ("abx", "--context", "any", "--resamples", "100", "--layer", "1"),
    ],
)
def test_records_say_for_which_language(
    verb: tuple[str, ...], corpus: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cache = tmp_path / "results.jsonl", tmp_path / "cache"
    common = [*verb, "--data", corpus, "--against", "", "--from", model, "--out", out, "--cache", cache]
    for chosen in ([], ["--for-language", "swa"], ["--for-language", "cs-CZ"]):
        assert run(*common, *chosen) == 0
    assert "gated was measured without its gates" in " ".join(capsys.readouterr().out.split())
    records = read_results(out)
    first = [next(r for r in records if r.system == name) for name in ("gated", "gated [sw]", "gated [cs]")]
    assert "gated was measured without its gates" in first[0].notes
    assert not any("measured without" in record.notes for record in first[1:])
    assert len(list(cache.iterdir())) >= 3


def test_what_does_not_depend_on_the_language_is_refused_alone_and_stands_beside(
    corpus: Path, model: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["probe", "lid", "--data", corpus, "--against", "", "--for-language", "cs", "--split", "speaker"]
    assert run(*common, "--from", plain) == 2
    assert "is the same for all languages" in capsys.readouterr().err
    assert run(*common, "--against", "mel") == 2
    assert "`--for-language` is how a model is measured" in " ".join(capsys.readouterr().err.split())
    assert run(*common, "--from", model, "--for-language", "fr") == 2
    assert "not adapted to the language `fr`, but to cs, sw" in " ".join(capsys.readouterr().err.split())
    out = tmp_path / "results.jsonl"
    assert run(*common, "--from", model, "--versus", plain, "--layer", "1", "--out", out) == 0
    assert {r.system for r in read_results(out)} == {"gated [cs]", "plain", "gated [cs] − plain"}


@pytest.mark.parametrize("kind", [MasksConfig, LoraConfig])
def test_one_language_is_exported_as_a_plain_model(
    kind: type[MasksConfig] | type[LoraConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tiny()
    install(encoder, kind(languages=LANGUAGES))
    random = torch.Generator().manual_seed(1)
    for edit in edits_of(encoder).values():
        if isinstance(edit, WeightMask):
            edit.write(1, torch.rand(edit.shape, generator=random) > 0.4)
        for parameter in edit.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    save_model(tmp_path / "model", encoder, None, {})
    assert run("export", tmp_path / "model", tmp_path / "all") == 1
    assert "export one of cs, sw with `isogloss export --for-language`" in " ".join(capsys.readouterr().err.split())
    assert run("export", tmp_path / "model", tmp_path / "one", "--for-language", "swa") == 0
    wave = [torch.randn(4_000, generator=random)]
    exported = load_encoder(tmp_path / "one")
    assert exported.edits is None
    expected = encoder.for_language("sw")(wave).states[-1].values_ND
    torch.testing.assert_close(exported.eval()(wave).states[-1].values_ND, expected, atol=1e-5, rtol=1e-5)
    assert (expected - encoder.for_language("cs")(wave).states[-1].values_ND).abs().max() > 0.01
    assert "`swa` uses" in (tmp_path / "one" / "README.md").read_text(encoding="utf-8")


def test_gates_of_a_language_cannot_be_exported(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for chosen in ([], ["--for-language", "cs"]):
        assert run("export", model, tmp_path / "out", *chosen) == 1
        assert "has gates (cs, sw), for one language either" in " ".join(capsys.readouterr().err.split())


def spoken(folder: Path, tags: str) -> Path:
    """Write a corpus of four short utterances in these languages."""
    speech_corpus(folder, [9000 + 400 * i for i in range(4)])
    cuts = [json.loads(line) for line in (folder / "cuts.jsonl").read_text().splitlines()]
    for cut, tag in zip(cuts, tags.split(), strict=True):
        cut["supervisions"][0] |= {"language": tag, "text": "abc"}
    write_cuts(folder / "cuts.jsonl", cuts)
    return folder


def masked(folder: Path, objective: dict[str, Any]) -> Path:
    """Save a model whose masks for cs and de differ."""
    encoder = tiny()
    install(encoder, MasksConfig(languages=("cs", "de")))
    for edit in edits_of(encoder).values():
        assert isinstance(edit, WeightMask)
        for row in range(2):
            edit.write(row, torch.rand(edit.shape, generator=torch.Generator().manual_seed(row)) > 0.3)
    save_model(folder, encoder, build_objective(objective, encoder), {})
    return folder


def test_lesions_hear_a_language_as_corpora_spell_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = masked(tmp_path / "model", {"name": "ctc", "labels": {"symbols": [*"abc"]}})
    plain, mixed = spoken(tmp_path / "plain", "cs de cs de"), spoken(tmp_path / "mixed", "cs-CZ de ces DEU")
    found = []
    for corpus, languages in ((plain, ()), (mixed, ()), (mixed, ("--language", "ces", "--language", "de-AT"))):
        command = ("--from", model, "--data", corpus, *languages, "--out", tmp_path / "out")
        assert run("languages", "lesions", *command) == 0
        assert "left out" not in capsys.readouterr().out
        found.append([(r.task, r.metric, r.value, r.meta) for r in read_results(tmp_path / "out" / "lesions.jsonl")])
    assert found[0]
    assert found[0] == found[1] == found[2]
    part = spoken(tmp_path / "part", "cs-CZ de ces sw-KE")
    assert run("languages", "lesions", "--from", model, "--data", part) == 0
    assert "without a mask, left out: sw-KE" in " ".join(capsys.readouterr().out.split())


def test_the_loss_of_a_language_is_that_of_it_in_all_regions(tmp_path: Path) -> None:
    model = masked(tmp_path / "model", {"name": "wav2vec2", "num_negatives": 5})
    counts = []
    for name, tags in (("plain", "cs de cs de"), ("mixed", "cs-CZ de ces de-AT")):
        encoder, measure = loss_measure(model, spoken(tmp_path / name, tags))
        counts.append([measure(fixed_to(encoder, language), language) for language in ("cs", "de")])
    for plain, mixed in zip(*counts, strict=True):
        assert set(mixed.ids or ()) == set(plain.ids or ())
        assert len(set(plain.ids or ())) == 2
        assert mixed.counts_U2.sum(0) == pytest.approx(plain.counts_U2.sum(0), rel=1e-5)
