import gzip
import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from fake_debian import FakeArchive, build_deb
from isogloss.core.errors import DataError
from isogloss.core.languages import normalize_language
from isogloss.data.corpora import debian
from isogloss.data.corpora._apt import Apt
from isogloss.data.corpora._deb import unpack
from isogloss.data.corpora._decode import UnusableRecordingError, decode
from isogloss.data.corpora._layouts import load_table, wanted
from isogloss.data.inputs import open_corpus


def tone(seconds: float = 0.5, hertz: float = 440.0, rate: int = 16_000, peak: float = 0.5) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encoded(audio: np.ndarray, rate: int = 16_000, kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, format=kind)
    return buffer.getvalue()


def wav(seconds: float = 0.5, hertz: float = 440.0, rate: int = 16_000) -> bytes:
    return encoded(tone(seconds, hertz, rate), rate)


def strongest_hertz(samples_T: np.ndarray, rate: int = 16_000) -> float:
    spectrum = np.abs(np.fft.rfft(samples_T * np.hanning(len(samples_T))))
    return float(np.fft.rfftfreq(len(samples_T), 1 / rate)[spectrum.argmax()])


@pytest.fixture
def archive(tmp_path, monkeypatch):
    fake = FakeArchive(tmp_path / "archive")
    monkeypatch.setenv("PATH", fake.path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


def add_italian(archive: FakeArchive) -> None:
    sounds = "usr/share/asterisk/sounds/it_IT_f_Rosa"
    archive.add(
        "asterisk-prompt-it-menardi-wav",
        {
            f"{sounds}/hello.wav": wav(0.6, 300),
            f"{sounds}/digits/1.wav": wav(0.4, 350),
            f"{sounds}/again.wav": wav(0.6, 300),  # the same samples as hello
            f"{sounds}/silence/1.wav": wav(1.0, 200),
            f"{sounds}/beep.wav": wav(0.3, 1000),
            f"{sounds}/broken.wav": b"RIFF nothing",
            f"{sounds}/short.wav": wav(0.01, 300),
            f"{sounds}/quiet.wav": encoded(np.zeros(8000, dtype=np.float32)),
            "usr/bin/program": b"never unpacked",
        },
        version="1:2.0-1",
    )
    lists = {
        "en": "; comment\nhello: Good morning.\ndigits/1: one\nbeep: [a beep]\n",
        "fr": "\ufeff; commentaire\nhello: «Bonjour.»\ndigits/1: (un)\n",
    }
    for language, text in lists.items():
        name = f"asterisk-core-sounds-{language}"
        archive.add(name, {f"usr/share/doc/{name}/core-sounds-{language}.txt.gz": gzip.compress(text.encode())})


def test_prepares_a_package_from_the_archive_to_cuts(archive, tmp_path):
    add_italian(archive)
    told = []
    report = debian.prepare(
        tmp_path / "out", packages=["asterisk-prompt-it-menardi-wav"], progress=lambda *event: told.append(event)
    )
    assert report["used"] == 2
    assert report["input"] == report["used"] + report["dropped"] == 8
    assert report["dropped_by_reason"] == {
        "a tone or noise": 1,
        "duplicate": 1,
        "empty or shorter than 0.05 s": 1,
        "silence": 1,
        "silent": 1,
        "unreadable: LibsndfileError": 1,
    }
    assert report["missing_packages"] == ["asterisk-core-sounds-es", "asterisk-core-sounds-ru"]
    assert report["packages"][0]["version"] == "1:2.0-1"
    cuts = {cut.id: cut for cut in open_corpus(tmp_path / "out")}
    assert set(cuts) == {"asterisk-prompt-it-menardi-wav.again", "asterisk-prompt-it-menardi-wav.digits.1"}
    cut = cuts["asterisk-prompt-it-menardi-wav.digits.1"]
    supervision = cut.supervisions[0]
    assert (supervision.language, supervision.gender, supervision.text) == ("it", "female", None)
    assert supervision.speaker == "asterisk-prompt-it-menardi-wav/Rosa"
    assert cut.custom["source"] == "asterisk-prompt-it-menardi-wav"
    assert cut.custom["prompt"] == "asterisk/digits/1"
    assert cut.custom["variety"] == "it-IT"
    assert cut.custom["license"] == "CC-BY-SA-3.0-IT"
    assert cut.custom["translations"] == {"en": "one"}  # French says `(un)`, which is no text
    audio = cut.load_audio()[0]
    assert cut.sampling_rate == 16_000
    assert len(audio) == cut.num_samples == 6400
    assert strongest_hertz(audio) == pytest.approx(350, abs=3)
    assert np.abs(audio).max() == pytest.approx(0.5, abs=0.01)
    stages = [stage for stage, _, _ in told]
    assert stages.index("unpack") > stages.index("download")
    assert told[-1] == ("decode", 6, 6)
    assert not list((tmp_path / "out").glob(".unpacked-*"))
    files = sorted(path.name for path in (tmp_path / "out/audio").rglob("*.flac"))
    assert files == sorted(f"{name}.flac" for name in cuts)  # the duplicate's file is gone


def test_prepared_twice_is_the_same_and_downloads_nothing_again(archive, tmp_path):
    add_italian(archive)
    for name in ("a", "b"):
        debian.prepare(tmp_path / name, packages=["asterisk-prompt-it-menardi-wav"], workers=1 if name == "a" else 4)
    assert (tmp_path / "a/cuts.jsonl.gz").read_bytes() == (tmp_path / "b/cuts.jsonl.gz").read_bytes()
    downloads = [words for _, _, words in archive.calls() if words[0] == "download"]
    assert len(downloads) == 1
    planned = debian.plan(packages=["asterisk-prompt-it-menardi-wav"])
    assert planned.download_megabytes == 0
    assert "in the cache already" in planned.describe()


def test_a_damaged_package_in_the_cache_is_fetched_again(archive, tmp_path):
    add_italian(archive)
    debian.prepare(tmp_path / "a", packages=["asterisk-prompt-it-menardi-wav"])
    cached = next(Apt().cache.glob("asterisk-prompt-it-*.deb"))
    whole = cached.read_bytes()
    cached.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    debian.prepare(tmp_path / "b", packages=["asterisk-prompt-it-menardi-wav"])
    assert cached.read_bytes() == whole


def test_lists_are_fetched_privately_where_the_machine_has_none(tmp_path, monkeypatch):
    fake = FakeArchive(tmp_path / "archive", has_system_lists=False)
    monkeypatch.setenv("PATH", fake.path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    add_italian(fake)
    report = debian.prepare(tmp_path / "out", packages=["asterisk-prompt-it-menardi-wav"])
    assert report["used"] == 2
    updates = [options for _, options, words in fake.calls() if words == ["update"]]
    assert len(updates) == 1
    lists = next(option for option in updates[0] if option.startswith("Dir::State::Lists="))
    assert Path(lists.split("=")[1]).is_relative_to(tmp_path / "cache/isogloss/debian")


def test_a_version_that_has_left_the_archive_is_looked_up_again(archive, tmp_path):
    add_italian(archive)
    old = archive.add("asterisk-prompt-it-menardi-wav", {"usr/share/asterisk/sounds/it_IT_f_Rosa/a.wav": wav()}, "0.1")
    archive.has_system_lists = False  # from now on the machine's lists are old
    add_italian(archive)
    old.unlink()
    report = debian.prepare(tmp_path / "out", packages=["asterisk-prompt-it-menardi-wav"])
    assert report["used"] == 2


def test_without_an_archive_the_cache_serves_and_without_it_one_sentence(archive, tmp_path):
    add_italian(archive)
    debian.prepare(tmp_path / "a", packages=["asterisk-prompt-it-menardi-wav"])
    archive.disconnect()
    (archive.folder / "system-lists/index.json").unlink()
    archive.has_system_lists = False
    assert debian.prepare(tmp_path / "b", packages=["asterisk-prompt-it-menardi-wav"])["used"] == 2
    with pytest.raises(DataError, match="reaches no archive.*synthesize") as caught:
        debian.plan(["cs"])
    assert "example.org" not in str(caught.value)


def test_without_apt_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="need `apt-get`, which is not on this machine"):
        debian.demo_selection()


def test_a_download_that_fails_is_one_sentence(archive, tmp_path):
    add_italian(archive)
    archive.disconnect()
    with pytest.raises(DataError, match="cannot be downloaded"):
        debian.prepare(tmp_path / "out", packages=["asterisk-prompt-it-menardi-wav"])


def test_plan_respects_languages_and_megabytes(archive):
    for source in load_table().source:
        for name in (source.package, *source.texts):
            if name not in archive.index:
                archive.add(name, {"usr/share/doc/x": b""})
                archive.index[name]["Size"] = str(int(source.megabytes * 1e6) if name == source.package else 20_000)
    archive.publish()
    demo = debian.demo_selection()
    assert demo.megabytes < 250
    by_language: dict[str, int] = {}
    for source in demo.sources:
        for language in set(source.languages) & set(demo.languages):
            by_language[language] = by_language.get(language, 0) + 1
    assert {language for language, count in by_language.items() if count >= 2} >= {"fr", "es", "it"}
    small = debian.demo_selection(max_megabytes=60)
    assert small.megabytes <= 60
    assert "fillets-ng-data-cs" in small.left_out
    assert {source.package for source in debian.plan(["cs"]).sources} == {"fillets-ng-data-cs", "klettres-data"}
    assert debian.plan(["pt-BR"]).languages == ["pt"]
    with pytest.raises(DataError, match="no package fits into 1 MB"):
        debian.plan(["cs"], max_megabytes=1)


def test_unknown_names_are_told():
    with pytest.raises(DataError, match="did you mean `klettres-data`"):
        debian.plan(packages=["kletres-data"])
    with pytest.raises(DataError, match="recordings in `xx`"):
        debian.plan(["xx"])


def test_dialogue_takes_texts_voices_and_translations_from_the_scripts(archive, tmp_path):
    scripts = "usr/share/games/fillets-ng/script"
    sounds = "usr/share/games/fillets-ng/sound"
    czech = """
dialogId("ahoj", "font_big", "Hello there, friend.")
dialogStr("Nazdar, příteli.")
dialogId("mlask", "", "")
dialogStr("")
dialogId("dlouhe", "font_small", "Much too long.")
dialogStr("%s")
""" % ("velmi dlouhý text " * 6)
    archive.add(
        "fillets-ng-data",
        {
            f"{scripts}/level/dialogs_cs.lua": czech.encode(),
            f"{scripts}/level/dialogs_de_CH.lua": b'dialogId("ahoj", "font_big", "Hello there, friend.")\ndialogStr("Sali.")',
            f"{scripts}/level/dialogs_en.lua": b'dialogId("ahoj", "font_big", "Hello there, friend.")\n',
            f"{scripts}/share/black_dialogs_cs.lua": b'dialogId("konec", "font_small", "The end.")\ndialogStr("Konec.")',
        },
    )
    archive.add(
        "fillets-ng-data-cs",
        {
            f"{sounds}/level/cs/ahoj.ogg": encoded(tone(1.0, 200, 22_050), 22_050, "OGG"),
            f"{sounds}/level/cs/mlask.ogg": encoded(tone(1.0, 250, 22_050), 22_050, "OGG"),
            f"{sounds}/level/cs/dlouhe.ogg": encoded(tone(1.0, 300, 22_050), 22_050, "OGG"),
            f"{sounds}/level/cs/neznamy.ogg": encoded(tone(1.0, 350, 22_050), 22_050, "OGG"),
            f"{sounds}/share/black/cs/konec.ogg": encoded(tone(1.0, 400, 22_050), 22_050, "OGG"),
        },
    )
    report = debian.prepare(tmp_path / "out", packages=["fillets-ng-data-cs"])
    assert report["dropped_by_reason"] == {"no words in the script": 1, "not in the script": 1}
    cuts = {cut.custom["prompt"]: cut for cut in open_corpus(tmp_path / "out")}
    hello = cuts["fillets/level/ahoj"]
    assert hello.supervisions[0].text == "Nazdar, příteli."
    assert hello.supervisions[0].speaker == "fillets-ng-data-cs/big"
    assert hello.custom["translations"] == {"en": "Hello there, friend.", "de-CH": "Sali."}
    assert hello.custom["original_sampling_rate"] == 22_050
    assert cuts["fillets/level/dlouhe"].supervisions[0].text is None  # 108 characters in a second
    assert report["remarks"]["fillets-ng-data-cs"] == {"text left out: longer than can be said in the time": 1}
    assert cuts["fillets/share/konec"].supervisions[0].text == "Konec."


def test_prompts_whose_text_is_a_remark_are_dropped_and_names_differ_in_case(archive, tmp_path):
    sounds = "usr/share/asterisk/sounds/fr_CA_f_June"
    names = ("hello", "bell", "jingle", "digits/1F", "unknown")
    archive.add(
        "asterisk-core-sounds-fr-g722",
        {f"{sounds}/{name}.wav": wav(0.5, 200 + 20 * number) for number, name in enumerate(names)},
    )
    text = "hello: Bonjour.\nbell: [une cloche]\njingle: (musique)\ndigits/1f: une\n"
    name = "asterisk-core-sounds-fr"
    archive.add(name, {f"usr/share/doc/{name}/core-sounds-fr.txt.gz": gzip.compress(text.encode())})
    report = debian.prepare(tmp_path / "out", languages=["fr"], packages=["asterisk-core-sounds-fr-g722"])
    assert report["dropped_by_reason"] == {"a tone or noise": 2}
    assert report["remarks"]["asterisk-core-sounds-fr-g722"] == {"no transcript in the package": 1}
    cuts = {cut.custom["prompt"]: cut.supervisions[0] for cut in open_corpus(tmp_path / "out")}
    assert {prompt: supervision.text for prompt, supervision in cuts.items()} == {
        "asterisk/hello": "Bonjour.",
        "asterisk/digits/1F": "une",
        "asterisk/unknown": None,
    }
    assert cuts["asterisk/hello"].language == "fr"


def test_stamps_keep_the_audio_and_drop_the_text_where_it_was_edited(archive, tmp_path):
    stamps = "usr/share/tuxpaint/stamps/animals"
    text = "A cat.\nfr.utf8=Un chat.\nca.utf8=Un gat.\nsr@latin.utf8=Mačka.\npt_BR.utf8=Um gato.\n"
    archive.add(
        "tuxpaint-stamps-default",
        {
            f"{stamps}/cat.txt": text.encode(),
            f"{stamps}/cat.ogg": encoded(tone(1.0, 150), kind="OGG"),
            f"{stamps}/cat_desc.ogg": encoded(tone(1.0, 200), kind="OGG"),
            f"{stamps}/cat_desc_fr.ogg": encoded(tone(1.0, 250), kind="OGG"),
            f"{stamps}/cat_desc_ca.ogg": encoded(tone(1.0, 300), kind="OGG"),
        },
    )
    report = debian.prepare(tmp_path / "out", packages=["tuxpaint-stamps-default"])
    assert report["dropped_by_reason"] == {"a sound of the picture, not a description": 1}
    cuts = {cut.supervisions[0].language: cut for cut in open_corpus(tmp_path / "out")}
    assert {language: cut.supervisions[0].text for language, cut in cuts.items()} == {
        "fr": "Un chat.",
        "ca": None,
        "en": None,
    }
    assert {cut.custom["prompt"] for cut in cuts.values()} == {"tuxpaint/animals/cat"}
    assert cuts["fr"].custom["translations"] == {
        "en": "A cat.",
        "ca": "Un gat.",
        "sr-Latn": "Mačka.",
        "pt-BR": "Um gato.",
    }
    only = debian.prepare(tmp_path / "fr", packages=["tuxpaint-stamps-default"], languages=["fr"])
    assert (only["used"], only["in_other_languages"]) == (1, 2)


def test_letters_and_words_come_from_the_list_of_sounds(archive, tmp_path):
    letters = '<klettres><!-- <sound name="X" file="nb/alpha/b.ogg"/> --><sound name="&Aring;" file="nb/alpha/a.ogg" /></klettres>'
    archive.add(
        "klettres-data",
        {
            "usr/share/klettres/nb/sounds.xml": letters.encode(),
            "usr/share/klettres/nb/alpha/a.ogg": encoded(tone(1.0, 200), kind="OGG"),
            "usr/share/klettres/nb/alpha/b.ogg": encoded(tone(1.0, 250), kind="OGG"),
        },
    )
    words = '<language code="sr"><sound name="ball"  file="sr/lopta.wav" /><sound name="ball" file="sr@latin/lopta.wav"/></language>'
    archive.add(
        "ktuberling-data",
        {
            "usr/share/ktuberling/sounds/sr.soundtheme": words.encode(),
            "usr/share/ktuberling/sounds/sr/lopta.wav": wav(0.5, 300),
            "usr/share/ktuberling/sounds/sr@latin/lopta.wav": wav(0.5, 300),
        },
    )
    report = debian.prepare(tmp_path / "out", packages=["klettres-data", "ktuberling-data"])
    assert report["dropped_by_reason"] == {"duplicate": 1, "not named in the package's list of sounds": 1}
    cuts = {cut.supervisions[0].language: cut for cut in open_corpus(tmp_path / "out")}
    assert cuts["nb"].custom["prompt"] == "klettres/nb/Å"
    assert cuts["nb"].supervisions[0].text is None
    assert cuts["sr"].custom["prompt"] == "ktuberling/ball"


def test_every_language_of_the_table_is_spelt_canonically():
    for source in load_table().source:
        for language in source.languages:
            assert normalize_language(language).tag == language, source.package
        assert set(source.references) <= set(source.languages)
    assert len({source.package for source in load_table().source}) == len(load_table().source)


@pytest.mark.parametrize("name", ["../evil.wav", "/tmp/evil.wav", "usr/share/../../../evil.wav"])
def test_a_package_that_points_outside_is_refused(tmp_path, name):
    path = tmp_path / "bad.deb"
    path.write_bytes(build_deb({name: b"x"}))
    with pytest.raises(DataError, match="outside of the package"):
        unpack(path, tmp_path / "in/out", wanted)
    assert not list(tmp_path.rglob("evil*"))


def test_links_are_never_made_nor_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    path = tmp_path / "links.deb"
    path.write_bytes(
        build_deb(
            {"usr/share/sounds/a.wav": b"inside"},
            links={"usr/share/sounds": str(outside), "usr/share/b.wav": "/etc/passwd"},
        )
    )
    assert unpack(path, tmp_path / "out", wanted) == 1
    assert not list(outside.iterdir())
    assert (tmp_path / "out/usr/share/sounds/a.wav").read_bytes() == b"inside"
    assert not (tmp_path / "out/usr/share/b.wav").exists()


@pytest.mark.parametrize("data", [b"", b"not a package", build_deb({"usr/share/a.wav": bytes(50_000)})[:-300]])
def test_a_damaged_package_is_one_sentence(tmp_path, data):
    path = tmp_path / "damaged.deb"
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged\\.deb"):
        unpack(path, tmp_path / "out", wanted)


def test_decodes_g722_at_the_right_level_and_pitch(tmp_path):
    import av

    path = tmp_path / "tone.g722"
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        samples = np.round(tone(2.0, 1000.0) * 32767).astype(np.int16)
        for start in range(0, len(samples), 320):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 320], format="s16", layout="mono")
            frame.sample_rate = 16_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert path.stat().st_size == 16_000  # 64 kbit/s
    decoded_T, rate = decode(path)
    assert rate == 16_000
    assert len(decoded_T) == pytest.approx(32_000, abs=64)
    assert strongest_hertz(decoded_T) == pytest.approx(1000, abs=1)
    # G.722 keeps well over 20 dB between signal and error for a tone in its lower band
    assert np.sqrt((decoded_T[1600:] / 32767.0) ** 2).mean() == pytest.approx(0.5 * 2 / np.pi, rel=0.05)


def test_decodes_gsm_frames_without_a_header(tmp_path):
    path = tmp_path / "tone.gsm"
    soundfile.write(path, tone(1.0, 500.0, 8_000), 8_000, format="RAW", subtype="GSM610")
    decoded_T, rate = decode(path)
    assert rate == 8_000
    assert len(decoded_T) == pytest.approx(16_000, abs=640)
    assert strongest_hertz(decoded_T) == pytest.approx(500, abs=2)


def test_resampling_scales_down_rather_than_clips(tmp_path):
    square_T = np.sign(tone(0.5, 431.0, 44_100)).astype(np.float32)  # overshoots when its upper harmonics are removed
    path = tmp_path / "loud.wav"
    soundfile.write(path, np.stack([square_T, square_T], axis=1), 44_100, subtype="FLOAT")
    decoded_T, rate = decode(path)
    assert rate == 44_100
    assert np.abs(decoded_T).max() == 32_767
    exact_T = soxr.resample(square_T, 44_100, 16_000)
    assert np.abs(exact_T).max() > 1.02
    assert decoded_T / 32_767 == pytest.approx(exact_T / np.abs(exact_T).max(), abs=1e-4)


def test_a_recording_that_is_not_finite_is_named(tmp_path):
    path = tmp_path / "nan.wav"
    soundfile.write(path, np.full(8000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(UnusableRecordingError, match="not finite"):
        decode(path)


def test_dpkg_accepts_the_packages_of_these_tests(tmp_path):
    path = tmp_path / "a.deb"
    path.write_bytes(build_deb({"usr/share/a.wav": b"x"}))
    listed = subprocess.run(["dpkg-deb", "-c", str(path)], capture_output=True, text=True, check=True, timeout=30)
    assert "usr/share/a.wav" in listed.stdout
