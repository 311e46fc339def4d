"""Reports by language from the command line: planted effects are found, pages stand alone, and what cannot be said is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from isogloss.cli.main import main
from isogloss.core.errors import DataError
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import MasksConfig, install, matrices
from isogloss.encoders.presets import build_encoder
from isogloss.evaluation.hours import hours_heard, read_hours
from isogloss.evaluation.language_reports import LanguageCounts, change_of_estimate, error_rate
from isogloss.evaluation.predictions import read_predictions
from isogloss.evaluation.relatedness import classification_of, read_classification
from isogloss.evaluation.tables import ResultRecord, read_results, write_results
from isogloss.evaluation.under_masks import dense, lesion_rise, lesions, mask_rise, under_masks
from isogloss.hub.load import load_model
from isogloss.hub.loaded import Loaded
from isogloss.hub.save import save_model
from isogloss.nn.edits import WeightMask
from isogloss.objectives.base import build_objective
from objective_cases import WAVE
from small_corpus import cut_fields, speech_corpus, write_cuts

SLAVIC, GERMANIC = ("cs", "pl", "sk"), ("de", "nl", "en")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["languages", *map(str, arguments)])
    return int(stop.value.code or 0)


def masked(languages: tuple[str, ...], mask_of: Callable[[str, torch.Size, torch.Generator], torch.Tensor]) -> Encoder:
    """Return a small encoder whose languages leave out what `mask_of` says (True: kept)."""
    torch.manual_seed(0)
    encoder = build_encoder(WAVE)
    install(encoder, MasksConfig(languages=languages))
    for number, matrix in enumerate(matrices(encoder).values()):
        assert isinstance(matrix.edit, WeightMask)
        for row, name in enumerate(languages):
            random = torch.Generator().manual_seed(1000 * number + row)
            matrix.edit.write(row, mask_of(name, matrix.weight.shape, random))
    return encoder.eval()


def kin_masks(name: str, shape: torch.Size, random: torch.Generator) -> torch.Tensor:
    """Leave out what kin leave out, and a little of one's own."""
    family = torch.Generator().manual_seed(SLAVIC.index(name) * 0 + 7 if name in SLAVIC else 8)
    return (torch.rand(shape, generator=family) > 0.3) & (torch.rand(shape, generator=random) > 0.1)


def random_masks(name: str, shape: torch.Size, random: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=random) > 0.3


def test_overlap_of_kin_is_found_and_the_page_stands_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, masks in (("kin", kin_masks), ("chance", random_masks)):
        save_model(tmp_path / name / "model", masked((*SLAVIC, *GERMANIC), masks), None, {})
    models = ["--from", tmp_path / "kin" / "model", "--from", tmp_path / "chance" / "model"]
    assert run("overlap", *models, "--out", tmp_path / "out") == 0
    records = {(r.system, r.metric): r for r in read_results(tmp_path / "out" / "overlap.jsonl")}
    kin, chance = records["kin", "mask_overlap"], records["chance", "mask_overlap"]
    assert chance.value == pytest.approx(chance.meta["expected_at_random"], abs=0.01)
    assert chance.value == pytest.approx(0.3 / 1.7, abs=0.01)
    assert kin.value > kin.meta["expected_at_random"] + 0.1
    assert {record.labels for record in records.values()} == {""}
    assert records["kin", "spearman_kinship"].value > 0.8
    assert (
        records["kin", "spearman_kinship"].meta["p_value"] < 0.15
    )  # six languages in two families: ten ways to divide them
    assert "Mantel" in capsys.readouterr().out
    page = (tmp_path / "out" / "overlap.html").read_text()
    assert page.count("<svg") == 2
    assert not re.search(r"(src|href)=\"(?!#)", page)
    chart = (tmp_path / "out" / "overlap-kin.svg").read_text()
    assert chart.index(">cs<") < chart.index(">sk<") < chart.index(">de<")  # kin stand side by side
    assert run("overlap", "--from", tmp_path) != 0


def test_kinship_comes_from_a_table_where_it_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m" / "model", masked(("qaa", "qab", "qac", "qad"), random_masks), None, {})
    assert run("overlap", "--from", tmp_path / "m" / "model") == 0
    assert "kinship of qaa, qab, qac, qad is unknown" in capsys.readouterr().out
    table = tmp_path / "kin.csv"
    table.write_text("language,family,branch\nqaa,X,a\nqab,X,a\nqac,X,b\nqad,Y,\n")
    assert run("overlap", "--from", tmp_path / "m" / "model", "--kin", table) == 0
    assert "spearman_kinship" in capsys.readouterr().out
    assert read_classification(table)["qad"] == ("Y",)
    assert classification_of("pt-BR") == ("Indo-European", "Romance", "Western Romance")
    table.write_text("language,family\nqaa,\n")
    with pytest.raises(DataError, match=r"kin\.csv:2"):
        read_classification(table)


def weight_measure(names: tuple[str, ...]) -> Callable[[Encoder, str], LanguageCounts]:
    """Measure how much is missing of the third of the first matrix that a language would need: an oracle for lesions."""

    def measure(encoder: Encoder, language: str) -> LanguageCounts:
        assert encoder.edits is None
        matrix = next(iter(matrices(encoder).values()))
        own = (matrix.used_weight() == 0).flatten().chunk(len(names))[names.index(language)].double()
        return LanguageCounts(np.stack([own.numpy(), np.ones(len(own))], axis=1))

    return measure


def test_lesions_and_wrong_masks_hurt_whom_they_are_planted_to_hurt() -> None:
    names = ("a", "b", "c")

    def only_own(name: str, shape: torch.Size, random: torch.Generator) -> torch.Tensor:
        mask = torch.zeros(shape.numel(), dtype=torch.bool)
        mask.chunk(3)[names.index(name)][:] = True
        return mask.view(shape)

    encoder, measure = masked(names, only_own), weight_measure(names)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    masks = under_masks(encoder, names, measure)
    assert [[round(error_rate(masks[m][k])) for k in names] for m in names] == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert mask_rise(masks).value == pytest.approx(1.0)
    cut = lesions(encoder, names, measure)
    assert all(error_rate(counts) == 0 for counts in cut.whole.values())
    own, chance = (lesion_rise(cut.whole, table) for table in (cut.own, cut.random))
    assert (own.own.value, own.others.value, own.difference.low) == (1.0, 0.0, pytest.approx(1.0))
    assert chance.own.value == 0.0  # what is taken at random is not the language's own
    assert chance.others.value == pytest.approx(0.5, abs=0.01)
    total = sum(matrix.weight.numel() for matrix in matrices(encoder).values())
    assert sum(cut.sizes.values()) == total
    assert dense(encoder).edits is None
    assert encoder.edits is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    with pytest.raises(DataError, match="two languages or more"):
        mask_rise({"a": masks["a"]})


def rises_table(speakers: list[str] | None = None) -> dict[str, dict[str, LanguageCounts]]:
    """Languages a, b, c under each other's masks: none errs under its own, all under that of c."""
    rates = {"a": (0.0, 0.1, 0.9), "b": (0.1, 0.0, 0.9), "c": (0.1, 0.1, 0.0)}
    counts = {
        name: [LanguageCounts(np.stack([np.full(6, rate), np.ones(6)], 1), speakers) for rate in own]
        for name, own in rates.items()
    }
    return {mask: {name: counts[name][i] for name in "abc"} for i, mask in enumerate("abc")}


def test_the_interval_of_masks_leaves_out_a_language_as_mask_and_as_tested() -> None:
    found = mask_rise(rises_table())
    assert found.value == pytest.approx((4 * 0.1 + 2 * 0.9) / 6)
    # without a: b and c; without b: a and c; without c: a and b
    without = np.array([(0.1 + 0.9) / 2, (0.1 + 0.9) / 2, 0.1])
    sd = np.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum())
    assert found.sd == pytest.approx(sd)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 2) * sd)
    assert "only 3 languages" in found.caveat
    lesioned = lesion_rise(rises_table()["a"], rises_table())
    assert lesioned.others.num_units == 3
    two = {mask: {name: row[name] for name in "ac"} for mask, row in rises_table().items() if mask in "ac"}
    assert np.isnan(mask_rise(two).low)  # of two languages nothing tells how much pairs differ
    assert np.isfinite(lesion_rise(two["a"], two).own.low)


def test_intervals_of_pairs_hold_the_truth_where_masks_differ() -> None:
    random, held = np.random.default_rng(3), 0
    for _ in range(200):
        rises = np.repeat(random.normal(0.3, 0.1, (5, 1)), 5, axis=1)
        table = {
            f"m{i}": {f"m{k}": LanguageCounts(np.array([[rises[i, k] if i != k else 0.0, 1.0]])) for k in range(5)}
            for i in range(5)
        }
        found = mask_rise(table)
        held += found.low <= 0.3 <= found.high
    assert held >= 180  # 95 % of 200, less four standard errors; resampled languages held it 80 to 85 % of the time


def test_lesions_of_a_pretrained_model_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = speech_corpus(tmp_path / "corpus", [9000 + 400 * i for i in range(8)], languages="ab")
    cuts = [json.loads(line) for line in (corpus / "cuts.jsonl").read_text().splitlines()]
    for cut in cuts:
        cut["supervisions"][0]["language"] = {"a": "cs", "b": "de"}[cut["supervisions"][0]["language"]]
    write_cuts(corpus / "cuts.jsonl", cuts)
    encoder = masked(("cs", "de", "fr"), random_masks)
    save_model(
        tmp_path / "run" / "model", encoder, build_objective({"name": "wav2vec2", "num_negatives": 5}, encoder), {}
    )
    common = ["--from", tmp_path / "run" / "model", "--data", corpus]
    assert run("lesions", *common, "--seconds", "2", "--out", tmp_path / "out") == 0
    records = {(r.task, r.metric): r for r in read_results(tmp_path / "out" / "lesions.jsonl")}
    rise = records["another language's mask", "loss_rise"]
    assert rise.num_units == 2  # nobody speaks French here
    own = rise.meta["loss"]
    assert rise.value == pytest.approx(
        (own["de"]["cs"] - own["cs"]["cs"] + own["cs"]["de"] - own["de"]["de"]) / 2, abs=1e-5
    )
    assert rise.labels == ""  # an objective without labels
    assert (tmp_path / "out" / "lesions-random.svg").exists()
    assert run("lesions", *common, "--seconds", "2") == 0
    again = capsys.readouterr().out
    assert f"{rise.value:.3f}"[:5] in again  # the same masks and negatives again
    assert run("lesions", *common, "--by", "errors") != 0
    assert "has no task" in capsys.readouterr().err
    assert run("lesions", *common, "--language", "pl") != 0
    assert "no mask for `pl`" in capsys.readouterr().err


def test_lesions_count_the_errors_of_a_model_that_transcribes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = speech_corpus(tmp_path / "corpus", [8000] * 4, languages="ab")
    cuts = [json.loads(line) for line in (corpus / "cuts.jsonl").read_text().splitlines()]
    for number, cut in enumerate(cuts):
        cut["supervisions"][0] |= {"language": ("cs", "de")[number % 2], "text": "abc"}
        cut["custom"] |= {"synthetic": number == 0}
    write_cuts(corpus / "cuts.jsonl", cuts)
    encoder = masked(("cs", "de"), random_masks)
    objective = build_objective({"name": "ctc", "labels": {"symbols": ["a", "b", "c"]}}, encoder)
    save_model(tmp_path / "run" / "model", encoder, objective, {})
    opened = []

    def once(path: Path) -> Loaded:
        opened.append(path)
        return load_model(path)

    for module in ("isogloss.hub.load", "isogloss.evaluation.tasks"):
        monkeypatch.setattr(f"{module}.load_model", once)
    assert run("lesions", "--from", tmp_path / "run" / "model", "--data", corpus, "--out", tmp_path / "out") == 0
    assert opened == [tmp_path / "run" / "model"]
    for record in read_results(tmp_path / "out" / "lesions.jsonl"):
        assert (record.metric, record.labels, record.synthetic_speech) == ("cer_rise", "gold", True)
        assert "only 2 languages" in record.caveat


def said(
    path: Path, rates: Mapping[str, float], *, seed: int = 0, prefix: str = "", utterances: int = 60, **told: Any
) -> Path:
    """Write predictions with planted phone error rates, ten phones an utterance."""
    random = np.random.default_rng(seed)
    with path.open("w") as file:
        for language, rate in rates.items():
            for number in range(utterances):
                text = " ".join("x" if random.random() < rate else "a" for _ in range(10))
                row = {"id": f"{prefix}{language}{number}", "text": text, "speaker": f"{language}{number % 6}"}
                row |= {"language": language, "reference": " ".join("a" * 10)}
                file.write(json.dumps(row | told) + "\n")
    return path


NAMES = ("cs", "de", "en", "fr", "nl", "pl")


def test_gain_against_hours_from_predictions(tmp_path: Path) -> None:
    before = said(tmp_path / "before.jsonl", dict.fromkeys(NAMES, 0.6))
    after = said(tmp_path / "after.jsonl", {name: 0.2 + 0.08 * i for i, name in enumerate(NAMES)}, seed=1)
    hours = tmp_path / "hours.csv"
    hours.write_text("language,hours\n" + "".join(f"{n},{10**i if i else 0}\n" for i, n in enumerate(NAMES)))
    assert (
        run(
            "gain", "--before", before, "--after", after, "--hours", hours, "--metric", "per", "--out", tmp_path / "out"
        )
        == 0
    )
    records = {(r.dataset, r.metric): r for r in read_results(tmp_path / "out" / "gain.jsonl")}
    correlation = records["test", "spearman_hours"]
    assert correlation.value == pytest.approx(-1.0, abs=0.07)
    assert correlation.high <= 0.0  # six languages: the interval reaches far
    assert correlation.meta["p_value"] < 0.02
    assert records["test [cs]", "per_gain"].value == pytest.approx(0.4, abs=0.06)
    assert records["test [cs]", "per_gain"].unit == "speaker"
    assert records["test [cs]", "per_gain"].meta["hours"] == 0
    assert records["test [cs]", "per_gain"].meta["p_holm"] < 0.01 < records["test [pl]", "per_gain"].meta["p_holm"]
    assert records["test (never heard)", "per_gain"].meta["languages"] == ["cs"]
    assert records["test (10 to 100 h)", "per_gain"].meta["languages"] == ["de"]
    assert ">0<" in (tmp_path / "out" / "gain.svg").read_text()  # hours of nothing have their place on a log axis


def test_hours_are_added_up_by_language_and_variety(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    tags = ("pt-BR", "pt-PT", "fr", "fr")
    write_cuts(corpus / "cuts.jsonl", [cut_fields(f"u{i}", 900.0, language=tag) for i, tag in enumerate(tags)])
    table = tmp_path / "hours.tsv"
    table.write_text("language\thours\nfra\t2\n")
    known = read_hours([corpus, table])
    assert known == pytest.approx({"pt-BR": 0.25, "pt-PT": 0.25, "fr": 2.5})
    assert hours_heard(["pt", "pt-BR", "pt-AO", "fr", "mdw"], known) == pytest.approx(
        {"pt": 0.5, "pt-BR": 0.25, "pt-AO": 0.5, "fr": 2.5, "mdw": 0.0}
    )
    table.write_text("language\thours\nfra\tmany\n")
    with pytest.raises(DataError, match=r"hours\.tsv:2"):
        read_hours([table])


def test_transfer_is_told_from_interference_on_other_speech(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone, shared, own = ({"cs": 0.6, "de": 0.2}, {"cs": 0.3, "de": 0.4}, {"cs": 0.3, "de": 0.2})
    files = {
        name: said(tmp_path / f"{name}.jsonl", rates, seed=seed, prefix=name[:3] if name.startswith("dev") else "")
        for seed, (name, rates) in enumerate(
            (("mono", alone), ("multi", shared), ("adapted", own), ("dev-mono", alone), ("dev-multi", shared))
        )
    }
    tests = [
        "--metric",
        "per",
        "--monolingual",
        files["mono"],
        "--multilingual",
        files["multi"],
        "--adapted",
        files["adapted"],
    ]
    devs = ["--dev-monolingual", files["dev-mono"], "--dev-multilingual", files["dev-multi"]]
    assert run("transfer", *tests, *devs, "--out", tmp_path / "out") == 0
    records = {(r.meta["group"], r.system): r for r in read_results(tmp_path / "out" / "transfer.jsonl")}
    assert records["transfer", "monolingual − multi"].low > 0.1
    assert records["transfer", "monolingual − multi"].meta["languages"] == ["cs"]
    assert records["interference", "monolingual − multi"].high < -0.1
    assert records["interference", "multi − adapted"].low > 0.1
    assert not records["transfer", "multi − adapted"].estimate.is_clear_of(0.0)
    same = ["--dev-monolingual", files["mono"], "--dev-multilingual", files["multi"]]
    assert run("transfer", *tests, *same) != 0
    assert "in the development set and in the test set" in capsys.readouterr().err


def test_development_sets_of_different_speech_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test, first, second = (said(tmp_path / f"{n}.jsonl", {"cs": 0.5, "de": 0.4}, prefix=n) for n in ("t", "u", "v"))
    tests = ["--monolingual", test, "--multilingual", test, "--adapted", test, "--metric", "per"]
    assert run("transfer", *tests, "--dev-monolingual", first, "--dev-multilingual", second) != 0
    assert "`ucs0` is scored by one only" in " ".join(capsys.readouterr().err.split())
    assert run("transfer", *tests, "--dev-monolingual", test, "--dev-multilingual", test) != 0
    assert "in the development set and in the test set" in " ".join(capsys.readouterr().err.split())


def test_records_pass_on_what_predictions_and_runs_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = said(tmp_path / "before.jsonl", dict.fromkeys(NAMES, 0.6), labels="silver", synthetic=True)
    after = said(tmp_path / "after.jsonl", {n: 0.2 + 0.1 * i for i, n in enumerate(NAMES)}, labels="gold", seed=1)
    hours = tmp_path / "hours.csv"
    hours.write_text("language,hours\n" + "".join(f"{n},{i + 1}\n" for i, n in enumerate(NAMES)))
    pair = ["--before", before, "--after", after, "--metric", "per", "--out", tmp_path / "out"]
    assert run("gain", *pair, "--hours", hours) == 0
    for record in read_results(tmp_path / "out" / "gain.jsonl"):
        assert (record.labels, record.synthetic_speech) == ("silver", True)
    assert run("forgetting", *pair) == 0
    assert {r.labels for r in read_results(tmp_path / "out" / "forgetting.jsonl")} == {"silver"}
    places = {f"target held out/{n}": (0.1 * i, 0.01) for i, n in enumerate(NAMES)}
    chosen: dict[str, Any] = {"labels": "", "search_budget": 7, "notes": "the best of 7"}
    adapted_run(tmp_path / "run", {**places, "source/cs": (-0.1, 0.01)}, **chosen)
    capsys.readouterr()
    for command in (("gain", "--hours", hours), ("forgetting",)):
        assert run(*command, "--run", tmp_path / "run", "--out", tmp_path / "out") == 0
        for record in read_results(tmp_path / "out" / f"{command[0]}.jsonl"):
            assert (record.labels, record.search_budget, record.notes) == ("", 7, "the best of 7")
        assert ": the best of 7\n" in capsys.readouterr().out
        assert ": the best of 7" in (tmp_path / "out" / f"{command[0]}.html").read_text()


def adapted_run(
    folder: Path,
    changes: Mapping[str, tuple[float, float]],
    metric: str = "masked_accuracy_difference",
    **told: Any,
) -> Path:
    """Write what `isogloss adapt` leaves of differences: place → value and standard deviation."""
    records = [
        ResultRecord(
            "after − before", "masked prediction", place, metric, value, value - 2 * sd, value + 2 * sd,
            unit="speaker", num_units=9, sd=sd, **told,
        )
        for place, (value, sd) in changes.items()
    ]  # fmt: skip
    write_results(folder / "results.jsonl", records)
    return folder


def test_runs_of_adapt_are_read_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gains = {f"target held out/{name}": (0.1 - 0.02 * i, 0.002) for i, name in enumerate(NAMES)}
    forgot = {"source/cs": (-0.5, 0.01), "source/ru": (-0.05, 0.01), "source/uk": (0.0, 0.01)}
    first = adapted_run(tmp_path / "first", {"target held out": (0.1, 0.1), **gains, **forgot})
    second = adapted_run(tmp_path / "second", {"target held out/ru": (0.2, 0.01), "source/cs": (0.01, 0.01)})
    hours = tmp_path / "hours.csv"
    hours.write_text("language,hours\n" + "".join(f"{n},{i + 1}\n" for i, n in enumerate(NAMES)))
    assert run("gain", "--run", first, "--hours", hours, "--out", tmp_path / "out") == 0
    correlation = read_results(tmp_path / "out" / "gain.jsonl")[0]
    assert correlation.value == pytest.approx(-1.0)
    assert correlation.high <= 0.0
    assert run("forgetting", "--run", first, "--run", second, "--out", tmp_path / "out") == 0
    cells = {(r.system, r.dataset): r for r in read_results(tmp_path / "out" / "forgetting.jsonl")}
    assert cells["first", "source [cs]"].value == pytest.approx(0.5)
    assert cells["first", "source [cs]"].low == pytest.approx(0.48)
    assert cells["first", "target [cs]"].value == pytest.approx(-0.1)  # both are there, apart
    assert cells["first", "source [cs]"].metric == "masked_error_rise"
    assert cells["first", "source [cs]"].meta["language"] == cells["first", "target [cs]"].meta["language"] == "cs"
    assert cells["first", "source [ru]"].meta["p_holm"] < 0.05 < cells["first", "source [uk]"].meta["p_holm"]
    assert cells["second", "target [ru]"].value == pytest.approx(-0.2)
    chart = (tmp_path / "out" / "forgetting.svg").read_text()
    assert ">source/cs<" in chart
    assert ">target/cs<" in chart
    assert ">50<" in chart  # a share: in points
    assert ">Errors after − before, points<" in chart
    assert "masked_error_rise %" in (tmp_path / "out" / "forgetting.html").read_text()
    third = adapted_run(tmp_path / "third", {"source/cs": (0.1, 0.01)}, "loss_difference")
    assert run("forgetting", "--run", third, "--out", tmp_path / "loss") == 0
    assert ">Loss after − before, nats<" in (tmp_path / "loss" / "forgetting.svg").read_text()
    assert read_results(tmp_path / "loss" / "forgetting.jsonl")[0].metric == "loss_rise"
    assert run("forgetting", "--run", first, "--run", third) != 0
    assert "loss and by masked_error" in capsys.readouterr().err
    assert run("gain", "--run", first, "--hours", hours, "--metric", "wer") != 0
    assert "`--metric` is of predictions" in capsys.readouterr().err
    assert run("gain", "--hours", hours) != 0
    assert run("gain", "--hours", hours, "--run", first, "--before", hours, "--after", hours) != 0
    assert "either `--run RUN`" in capsys.readouterr().err
    with pytest.raises(DataError, match="no standard deviation"):
        change_of_estimate(
            read_results(first / "results.jsonl")[0].estimate.__class__(1, 0, 2, float("nan"), "", 1), "x"
        )


def test_forgetting_from_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = said(tmp_path / "before.jsonl", {"cs": 0.3, "de": 0.3})
    first = said(tmp_path / "to-cs.jsonl", {"cs": 0.1, "de": 0.6}, seed=1)
    assert run("forgetting", "--before", before, "--after", first) != 0
    assert "give `--metric`, one of wer, cer, per, error" in capsys.readouterr().err
    assert run("forgetting", "--before", before, "--after", first, "--metric", "per", "--out", tmp_path / "out") == 0
    cells = {r.meta["language"]: r for r in read_results(tmp_path / "out" / "forgetting.jsonl")}
    assert cells["de"].low > 0.1
    assert cells["cs"].high < -0.05
    assert cells["cs"].system == "to-cs"


def test_systems_of_one_name_stay_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        adapted_run(tmp_path / name, {"source/cs": (change, 0.01)})
        for name, change in (("lr0.001", -0.1), ("lr0.003", -0.2), ("other/lr0.001", -0.3))
    ]
    for chosen, names in (
        (runs[:2], {"lr0.001", "lr0.003"}),
        (runs, {f"{tmp_path.name}/lr0.001", "lr0.003", "other/lr0.001"}),
    ):
        assert run("forgetting", *(part for path in chosen for part in ("--run", path)), "--out", tmp_path / "out") == 0
        assert {record.system for record in read_results(tmp_path / "out" / "forgetting.jsonl")} == names
    assert run("forgetting", "--run", runs[0], "--run", runs[0]) != 0
    assert "is given for two systems" in capsys.readouterr().err
    files = []
    for number, name in enumerate(("dense", "s3net")):
        (tmp_path / name).mkdir()
        files.append(said(tmp_path / name / "said.jsonl", {"cs": 0.6 - 0.2 * number, "de": 0.3}, seed=number))
    dev = said(tmp_path / "dev.jsonl", {"cs": 0.6, "de": 0.3}, prefix="dev")
    devs = ["--dev-monolingual", dev, "--dev-multilingual", dev]
    tests = ["--monolingual", files[0], "--multilingual", files[0], "--adapted", files[1], "--metric", "per"]
    assert run("transfer", *tests, *devs, "--out", tmp_path / "out") == 0
    assert "dense/said − s3net/said" in {r.system for r in read_results(tmp_path / "out" / "transfer.jsonl")}


def test_predictions_are_checked(tmp_path: Path) -> None:
    path = said(tmp_path / "a.jsonl", {"cs": 0.5, "de": 0.0}, utterances=4)
    counts = read_predictions([path], "error")
    assert error_rate(counts["cs"]) == 1.0  # all have a wrong phone
    assert error_rate(counts["de"]) == 0.0
    assert counts["de"].speakers == ["de0", "de1", "de2", "de3"]
    with pytest.raises(DataError, match="was there before"):
        read_predictions([path, path], "per")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for key, message in (("reference", "no utterance with a `reference`"), ("language", "has no language")):
        path.write_text("".join(json.dumps({**row, key: None}) + "\n" for row in rows))
        with pytest.raises(DataError, match=message):
            read_predictions([path], "per")
    path.write_text("".join(json.dumps({**row, "labels": "bronze"}) + "\n" for row in rows))
    with pytest.raises(DataError, match="must be gold, silver or synthetic"):
        read_predictions([path], "per")
    path.write_text('{"id": 3}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1"):
        read_predictions([path], "per")


def test_charts_of_many_curves_and_of_crowded_points_can_be_read() -> None:
    from isogloss.benchmark.charts import band_chart, scatter_chart
    from isogloss.benchmark.heat_map import heat_map

    points = [(1.0, 10.0, 5.0, 15.0), (10.0, 20.0, 15.0, 25.0)]
    two, three = (
        band_chart("t", "x", dict.fromkeys(names, points), log_x=True, reference=4.0) for names in ("ab", "abc")
    )
    assert "PolyCollection" in two  # bands
    assert "PolyCollection" not in three  # bars: three bands hide each other
    crowded = scatter_chart(
        "t", "x", "y", [("one", 1.0, 5.0, 4.0, 6.0), ("two", 1.0, 5.1, 4.0, 6.0), ("far", 100.0, 0.0, -1.0, 1.0)]
    )
    assert [name for name in ("one", "two", "far") if re.search(rf"text-anchor: end[^>]*>{name}<", crowded)] == ["two"]
    negative = heat_map("t", ["a"], ["b"], [[-0.001]], digits=2)
    assert ">0.00<" in negative  # not −0.00


def test_heat_maps_have_room_for_long_names() -> None:
    from isogloss.benchmark.heat_map import heat_map

    def size(chart: str) -> tuple[float, float]:
        found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', chart)
        assert found is not None
        return float(found[1]), float(found[2])

    short, long = ["cs"], ["a/very/long/name/of/a/run/that/nobody/would/give"]
    plain, beside, below = (
        heat_map("t", rows, columns, [[1.0]]) for rows, columns in ((short, short), (long, short), (short, long))
    )
    assert size(beside)[0] > size(plain)[0] + 100 > size(below)[0]
    assert size(below)[1] > size(plain)[1] + 100 > size(beside)[1]
    assert "…name/of/a/run/that/nobody/would/give"[-31:] in beside
