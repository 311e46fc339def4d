"""Downloaded corpora of languages and dialects, in the layouts of their archives: parts, labels, speakers; and from there to figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from isogloss.cli.main import main
from isogloss.core.errors import ConfigError, DataError
from isogloss.data.downloads import READERS, import_corpus
from isogloss.data.inputs import open_corpus
from isogloss.encoders.presets import build_encoder
from isogloss.evaluation.tables import read_results
from isogloss.hub.save import save_model
from objective_cases import WAVE

RATE = 16_000
PITCH = {"a": 300.0, "b": 1200.0}


def tone(path: Path, kind: str, number: int, seconds: float = 0.6) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * PITCH[kind] * time + number)
    wave += np.random.default_rng(number).normal(0, 0.01, len(time))
    soundfile.write(path, wave, RATE, subtype="PCM_16")
    return len(time)


def fleurs(root: Path, languages: Sequence[str] = ("af_za", "cmn_hans_cn")) -> Path:
    """As the archives unpack: `af_za/train.tsv`, `af_za/audio/train/123.wav`; seven cells, no header."""
    for kind, language in zip("ab", languages, strict=True):
        for part, count in (("train", 4), ("dev", 3), ("test", 3)):
            lines = []
            for i in range(count):
                name = f"{1000 * len(part) + i}.wav"
                samples = tone(root / language / "audio" / part / name, kind, 10 * len(part) + i)
                gender = ("MALE", "FEMALE")[i % 2]
                lines.append(f'{i}\t{name}\tA "sentence {i}.\ta sentence {i}\ta | s |\t{samples}\t{gender}')
            (root / language / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    return root


def common_voice(root: Path, locales: Sequence[str] = ("rw", "sv-SE")) -> Path:
    """As a release unpacks: `cv-corpus-x/rw/train.tsv` with a header, `cv-corpus-x/rw/clips/`."""
    header = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment\n"
    for kind, locale in zip("ab", locales, strict=True):
        place = root / "cv-corpus-x" / locale
        for part, count in (("train", 4), ("dev", 3), ("test", 3)):
            rows = []
            for i in range(count):
                name = f"common_voice_{locale}_{part}{i}.wav"
                tone(place / "clips" / name, kind, 10 * len(part) + i)
                rows.append(f"{part}{i % 2}\t{name}\tEn mening\t2\t0\t\tfemale_feminine\t\t{locale}\t\n")
            (place / f"{part}.tsv").write_text(header + "".join(rows))
    return root


def voxlingua107(root: Path, languages: Sequence[str] = ("iw", "lt")) -> Path:
    """As the archives unpack: `iw/VIDEO__U__S…wav`, and the development set in `dev/`."""
    for kind, language in zip("ab", languages, strict=True):
        for i in range(4):
            video = f"{language}video-_{i // 2:02d}"
            tone(root / language / f"{video}__U__S{i}---0010.{i}00-0020.000.wav", kind, i)
            tone(root / "dev" / language / f"{video[:-1]}9__U__S{i}---0010.{i}00-0020.000.wav", kind, 10 + i)
    return root


def adi17(root: Path) -> Path:
    """A folder per dialect in training, a list of labels for development and test."""
    for kind, dialect in zip("ab", ("EGY", "KSA"), strict=True):
        for i in range(4):
            tone(root / "train" / dialect / f"{dialect}video--{i // 2}_{i}00-{i}99.wav", kind, i)
        for part in ("dev", "test"):
            for i in range(3):
                tone(root / part / f"{dialect}_{part}_{i}.wav", kind, 10 * len(part) + i)
            with (root / f"adi17_official_{part}_label.txt").open("a") as file:
                file.writelines(f"{dialect}_{part}_{i} {dialect}\n" for i in range(3))
    return root


LAYOUTS = {"fleurs": fleurs, "common-voice": common_voice, "voxlingua107": voxlingua107, "adi17": adi17}
LABELS = {
    "fleurs": {"af", "zh"},
    "common-voice": {"rw", "sv"},
    "voxlingua107": {"he", "lt"},
    "adi17": {"ar-EG", "ar-SA"},
}


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_fleurs_has_parts_sentences_and_genders(tmp_path: Path) -> None:
    found = import_corpus("fleurs", fleurs(tmp_path / "down"), tmp_path / "out")
    assert {part: count for part, (count, _) in found.counts.items()} == {"train": 8, "dev": 6, "test": 6}
    cuts = {cut.id: cut for cut in open_corpus(tmp_path / "out" / "train")}
    first = cuts["af_za-5000"]
    assert (first.supervisions[0].language, first.supervisions[0].gender) == ("af-ZA", "male")
    assert first.supervisions[0].text == "a sentence 0"
    assert first.supervisions[0].speaker is None
    assert first.custom["prompt"] == cuts["cmn_hans_cn-5000"].custom["prompt"]
    (tmp_path / "down" / "data").mkdir()
    for place in ("af_za", "cmn_hans_cn"):
        (tmp_path / "down" / place).rename(tmp_path / "down" / "data" / place)
    assert import_corpus("fleurs", tmp_path / "down", tmp_path / "again").counts == found.counts
    (tmp_path / "down" / "data" / "af_za" / "dev.tsv").write_text("1\ta.wav\n")
    with pytest.raises(DataError, match=r"dev\.tsv:1: must have 7 cells"):
        import_corpus("fleurs", tmp_path / "down", tmp_path / "third")


def test_common_voice_keeps_speakers_and_locales(tmp_path: Path) -> None:
    found = import_corpus("common-voice", common_voice(tmp_path / "down"), tmp_path / "out")
    assert found.languages == {"train": 2, "dev": 2, "test": 2}
    cuts = list(open_corpus(tmp_path / "out" / "test"))
    assert {cut.supervisions[0].language for cut in cuts} == {"rw", "sv-SE"}
    assert {cut.supervisions[0].speaker for cut in cuts} == {"test0", "test1"}
    one = import_corpus("common-voice", tmp_path / "down" / "cv-corpus-x" / "rw", tmp_path / "one")
    assert one.counts["train"][0] == 4


def test_segments_of_a_video_share_their_speaker_and_withdrawn_codes_are_replaced(tmp_path: Path) -> None:
    import_corpus("voxlingua107", voxlingua107(tmp_path / "down"), tmp_path / "out")
    train, dev = (list(open_corpus(tmp_path / "out" / part)) for part in ("train", "dev"))
    assert {cut.supervisions[0].language for cut in train} == {"he", "lt"}
    assert len({cut.supervisions[0].speaker for cut in train}) == 4
    assert not {c.supervisions[0].speaker for c in train} & {c.supervisions[0].speaker for c in dev}
    assert len(train) == len(dev) == 8


@pytest.mark.parametrize("name", ["fleurs", "common-voice", "adi17"])
def test_the_form_of_another_corpus_is_not_voxlingua107(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path / "down")
    with pytest.raises(DataError, match=f"not the form of VoxLingua107.*try `isogloss corpus import {name}`"):
        import_corpus("voxlingua107", tmp_path / "down", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["voxlingua107", "common-voice"])
def test_the_form_is_found_without_a_look_at_each_recording(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = LAYOUTS[name](tmp_path / "down")
    if name == "common-voice":  # a single locale: its clips are the next folder to look into
        folder = folder / "cv-corpus-x" / "rw"
    looked_at: list[Path] = []
    stat = Path.stat

    def noted(path: Path, **options: Any) -> os.stat_result:
        looked_at.append(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", noted)
    READERS[name](folder)
    assert looked_at
    assert not [path for path in looked_at if path.suffix in (".wav", ".mp3", ".flac")]


def test_folders_below_a_language_are_not_merged(tmp_path: Path) -> None:
    for part in ("train", "test"):
        tone(tmp_path / "down" / "af" / part / "x.wav", "a", 0)
    with pytest.raises(DataError, match=r"must lie in a folder named after its language"):
        import_corpus("voxlingua107", tmp_path / "down", tmp_path / "out")


def test_dialects_come_from_folders_and_from_lists(tmp_path: Path) -> None:
    import_corpus("adi17", adi17(tmp_path / "down"), tmp_path / "out")
    for part in ("train", "dev", "test"):
        assert {c.supervisions[0].language for c in open_corpus(tmp_path / "out" / part)} == {"ar-EG", "ar-SA"}
    train = list(open_corpus(tmp_path / "out" / "train"))
    assert {cut.custom["variety"] for cut in train} == {"EGY", "KSA"}
    (tmp_path / "down" / "adi17_official_dev_label.txt").unlink()
    with pytest.raises(DataError, match="no folder named after a dialect"):
        import_corpus("adi17", tmp_path / "down", tmp_path / "again")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    tone(tmp_path / "some" / "where" / "x.wav", "a", 0)
    for name in READERS:
        with pytest.raises(DataError, match=r"has no|no recording"):
            import_corpus(name, tmp_path / "some", tmp_path / "out")
    with pytest.raises(ConfigError, match="did you mean `fleurs`"):
        import_corpus("fleur", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="no such folder"):
        import_corpus("fleurs", tmp_path / "none", tmp_path / "out")


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_from_the_unpacked_archive_to_figures(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path / "down")
    assert run("corpus", "import", name, tmp_path / "down", "--out", tmp_path / "parts") == 0
    save_model(tmp_path / "model", build_encoder(WAVE), None, {})
    small = [
        *("data.num_workers=0", "data.min_seconds=0.1", "data.seconds_per_update=4.8", "data.micro_batch_seconds=4.8"),
        *("data.max_seconds=2.0", "training.updates=12", "training.checkpoint_every=12", "task.mask_probability=0.0"),
        *("task.hidden_width=8", "optim.head_lr=0.02"),
        *(["task.attention_width=8"] if name in ("voxlingua107", "adi17") else []),
    ]
    settings = [part for setting in small for part in ("--set", setting)]
    parts, run_dir = tmp_path / "parts", tmp_path / "run"
    train = ["finetune", f"lid-{name}", "--from", tmp_path / "model", "--data", parts / "train", "--out", run_dir]
    assert run(*train, "--freeze", "encoder", *settings) == 0
    dev = ["--dev", parts / "dev"] if name != "voxlingua107" else []
    test = parts / ("test" if name != "voxlingua107" else "dev")
    assert run("predict", "--model", run_dir / "model", *dev, "--data", test, "--results", tmp_path / "r.jsonl") == 0
    records = read_results(tmp_path / "r.jsonl")
    assert {r.meta["language"] for r in records if "[" in r.dataset} == LABELS[name]
    found = {record.metric for record in records}
    assert {"accuracy", "macro_accuracy", "accuracy_short", "ece", "cavg", "eer"} <= found
    assert ("ece_scaled" in found) == bool(dev)
    assert (name in ("fleurs", "voxlingua107")) == any("(" in record.dataset for record in records)  # figures by region
