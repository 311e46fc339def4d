"""Language identification: splits hold out what they say, kNN equals a slow reference, shortcuts are exposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from scipy.spatial.distance import cosine

from isogloss.core.errors import DataError
from isogloss.evaluation.features import FeatureStore
from isogloss.evaluation.lid import (
    LidSettings,
    Pooled,
    classify_knn,
    classify_linear,
    languages_tested,
    pool,
    probe_language,
    source_family,
    source_folds,
    speaker_folds,
)
from isogloss.evaluation.quick import _languages, measurable
from isogloss.evaluation.spectral import SpectralSource


def make_pooled(rng: np.random.Generator, language: float, speaker: float, channel: float) -> Pooled:
    """Vectors that are a sum of language, speaker, and source parts of the given sizes; each language has two sources."""
    languages, speakers, sources = [], [], []
    for lang in ("aaa", "bbb", "ccc"):
        for source in (f"{lang}-radio", f"{lang}-field"):
            for number in range(3):
                for _ in range(6):
                    languages.append(lang)
                    speakers.append(f"{source}/{number}")
                    sources.append(source)

    def part(names: list[str]) -> np.ndarray:
        vectors = {name: rng.normal(size=20) for name in sorted(set(names))}
        return np.array([vectors[name] for name in names])

    values = language * part(languages) + speaker * part(speakers) + channel * part(sources)
    values = (values + 0.3 * rng.normal(size=values.shape)).astype(np.float32)
    ids = [str(i) for i in range(len(languages))]
    return Pooled(
        "x",
        {0: rng.normal(size=values.shape).astype(np.float32), 1: values},
        ids,
        languages,
        speakers,
        sources,
        np.full(len(ids), 10.0),
    )


def test_speaker_folds_never_share_a_speaker_and_test_each_once() -> None:
    rng = np.random.default_rng(0)
    languages = ["a"] * 40 + ["b"] * 25 + ["c"] * 10 + ["d"] * 3
    # "s0" speaks two languages; c has one speaker, and so has d: one who is tested in a.
    speakers = (
        [f"s{i}" for i in rng.integers(7, size=40)]
        + [f"t{i % 2}" for i in range(24)]
        + ["s0"]
        + ["only"] * 10
        + ["s1"] * 3
    )
    folds = speaker_folds(languages, speakers, 5)
    tested = np.concatenate([test for _, test in folds])
    assert len(set(tested)) == len(tested)
    assert {languages[i] for i in tested} == {"a", "b"}
    assert len(tested) == 65
    for train, test in folds:
        assert not {speakers[i] for i in train} & {speakers[i] for i in test}
        assert {languages[i] for i in test} <= {languages[i] for i in train}
        assert "c" in {languages[i] for i in train}


def test_cuts_that_say_no_language_have_none_to_test() -> None:
    assert speaker_folds([], [], 5) == []
    assert languages_tested([], "speaker", LidSettings()) == []


def test_source_folds_never_share_a_source_and_need_enough_speech() -> None:
    languages = ["a", "a", "b", "b", "b", "c", "c", "d"]
    sources = ["x", "y", "x", "y", "y", "x", "y", "x"]
    seconds = np.array([70.0, 80.0, 90.0, 40.0, 30.0, 70.0, 10.0, 300.0])
    folds = source_folds(languages, sources, seconds, 60.0)
    assert [(train.tolist(), test.tolist()) for train, test in folds] == [([1, 3, 4], [0, 2]), ([0, 2], [1, 3, 4])]


def test_source_family_drops_the_language_only() -> None:
    def cut(source: str, language: str) -> MonoCut:
        return MonoCut("c", 0, 1, 0, [SupervisionSegment("c", "c", 0, 1, language=language)], custom={"source": source})

    assert source_family(cut("prompts-fr-g722", "fr")) == "prompts-g722"
    assert source_family(cut("prompt-es-co", "es-CO")) == "prompt"
    assert source_family(cut("stamps-default", "de")) == "stamps-default"
    assert source_family(cut("fr", "fr")) == "fr"


def test_knn_equals_slow_reference() -> None:
    rng = np.random.default_rng(1)
    train, test = rng.normal(size=(30, 6)).astype(np.float32), rng.normal(size=(9, 6)).astype(np.float32)
    labels = rng.integers(3, size=30)
    votes = classify_knn(train, labels, test, 4, 5)
    mean, scale = train.mean(0), train.std(0)
    for row, scores in zip(test, votes, strict=True):
        similarity = [1 - cosine((row - mean) / scale, (x - mean) / scale) for x in train]
        expected = np.zeros(4)
        for i in sorted(range(30), key=lambda i: -similarity[i])[:5]:
            expected[labels[i]] += 1 + similarity[i]
        np.testing.assert_allclose(scores[:3], expected[:3], rtol=1e-4)
        assert scores[3] == -np.inf  # a class without training items


def test_linear_classes_weigh_alike() -> None:
    rng = np.random.default_rng(2)
    labels = np.array([0] * 500 + [1] * 10)
    train = rng.normal(size=(510, 1)).astype(np.float32) + labels[:, None]
    scores = classify_linear(train, labels, np.linspace(-1, 2, 301, dtype=np.float32)[:, None], 2, 1e-2)
    border = np.linspace(-1, 2, 301)[np.argmax(scores[:, 1] > scores[:, 0])]
    assert border == pytest.approx(0.5, abs=0.35)  # unweighted it would lie near ln 50 + 0.5


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_language_code_survives_and_layer_is_chosen_inside(method: Any) -> None:
    pooled = make_pooled(np.random.default_rng(3), language=2.0, speaker=0.5, channel=0.3)
    for held_out in ("speaker", "source"):
        result = probe_language(pooled, method=method, held_out=held_out)  # type: ignore[arg-type]
        assert result.accuracy > 0.9
        assert set(result.layers) == {1}
        assert result.left_out == 0
        hits = [a == b for a, b in zip(result.languages, result.predictions, strict=True)]
        assert np.mean(hits) == pytest.approx(result.accuracy)
        assert [result.classes[i] for i in result.scores_BC.argmax(1)] == result.predictions


def test_channel_shortcut_is_exposed_by_holding_out_sources() -> None:
    pooled = make_pooled(np.random.default_rng(4), language=0.0, speaker=0.2, channel=2.0)
    assert probe_language(pooled, held_out="speaker", layers=[1]).accuracy > 0.95
    assert probe_language(pooled, held_out="source", layers=[1]).accuracy < 0.6


def test_one_speaker_per_language_is_refused() -> None:
    pooled = make_pooled(np.random.default_rng(5), 1.0, 1.0, 1.0)
    pooled.speakers = pooled.languages
    with pytest.raises(DataError, match="held-out speakers needs two languages"):
        probe_language(pooled)


@pytest.mark.parametrize("held_out", ["speaker", "source", "utterance"])
def test_one_language_is_no_test(held_out: Any) -> None:
    pooled = make_pooled(np.random.default_rng(3), language=2.0, speaker=1.0, channel=1.0)
    alone = replace(pooled, languages=["aaa"] * len(pooled.ids))
    with pytest.raises(DataError, match="this corpus has 1 language and 18 speakers of 6 sources"):
        probe_language(alone, layers=[1], held_out=held_out)


def test_one_language_that_can_be_tested_is_no_test() -> None:
    pooled = make_pooled(np.random.default_rng(3), language=2.0, speaker=1.0, channel=1.0)
    voices = [s if lang == "aaa" else lang for s, lang in zip(pooled.speakers, pooled.languages, strict=True)]
    with pytest.raises(DataError, match="and all that can be tested is aaa"):
        probe_language(replace(pooled, speakers=voices), layers=[1])


def test_a_quick_probe_leaves_out_what_cannot_be_tested() -> None:
    # Who is held out of Mbosi in one part takes all of Berber with them.
    said = (("mdw", "p"), ("mdw", "q"), ("kab", "p"), ("kab", "r"))
    cuts = [
        MonoCut(lang + speaker, 0, 1, 0, [SupervisionSegment(lang, lang, 0, 1, language=lang, speaker=speaker)])
        for lang, speaker in said
    ]
    arrays = {(cut.id, 1): np.full((3, 2), number, np.float16) for number, cut in enumerate(cuts)}
    assert _languages(FeatureStore("x", 50.0, 0.0, (1,), arrays=arrays), cuts) == {}
    assert measurable(cuts) == []  # and what is promised before the run is what is measured


def test_a_quick_probe_hides_no_other_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [(lang, f"{lang}{number}") for lang in ("mdw", "kab") for number in range(3)]
    cuts = [
        MonoCut(voice, 0, 1, 0, [SupervisionSegment(voice, voice, 0, 1, language=lang, speaker=voice)])
        for lang, voice in said
    ]
    frames = np.random.default_rng(0).normal(size=(len(cuts), 3, 2)).astype(np.float16)
    arrays = {(cut.id, 1): frames[number] for number, cut in enumerate(cuts)}
    store = FeatureStore("x", 50.0, 0.0, (1,), arrays=arrays)
    assert measurable(cuts) == ["languages (kab, mdw)"]
    assert set(_languages(store, cuts)) == {"probe/language_accuracy"}
    # With what is too short for a frame left out, one language is left: that is no fault.
    short = FeatureStore("x", 50.0, 0.0, (1,), arrays={k: v[: 3 * (k[0][:3] == "kab")] for k, v in arrays.items()})
    assert _languages(short, cuts) == {}

    def broken(*_: object, **__: object) -> None:
        raise DataError("the features of kab0 are not finite")

    monkeypatch.setattr("isogloss.evaluation.quick.probe_language", broken)
    with pytest.raises(DataError, match="not finite"):
        _languages(store, cuts)


def test_pooling_takes_mean_and_deviation() -> None:
    class Source:
        name, layers, frame_rate_hz, first_center_seconds = "s", (0,), 100.0, 0.0

        def features(self, cut: Any) -> Mapping[int, np.ndarray]:
            return {0: np.array([[1.0, 2.0], [3.0, 2.0]] if cut.id != "empty" else np.zeros((0, 2)))}

    def cut(name: str, language: str | None) -> MonoCut:
        return MonoCut(name, 0, 1, 0, [SupervisionSegment(name, name, 0, 1, language=language, speaker="p")])

    pooled = pool(Source(), [cut("one", "aaa"), cut("empty", "aaa"), cut("none", None)])
    assert pooled.ids == ["one"]
    np.testing.assert_allclose(pooled.values[0], [[2, 2, 1, 0]])
    assert pool(Source(), [cut("one", "aaa")], LidSettings(with_deviation=False)).values[0].shape == (1, 2)


def test_pooled_spectra_are_not_normalised_away(tmp_path: Path) -> None:
    cuts = []
    for number, loudness in enumerate((0.01, 0.3)):
        samples = (np.random.default_rng(0).normal(size=8_000) * loudness).astype(np.float32)
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, samples, 16_000)
        recording = Recording(str(number), [AudioSource("file", [0], str(path))], 16_000, 8_000, 0.5, channel_ids=[0])
        supervision = SupervisionSegment(str(number), str(number), 0, 0.5, language="aaa", speaker="p")
        cuts.append(MonoCut(str(number), 0, 0.5, 0, [supervision], recording=recording))
    for name in ("mel", "mfcc"):
        values = pool(SpectralSource(name), cuts).values[0]  # type: ignore[arg-type]
        assert np.abs(values[0] - values[1]).max() > 1
