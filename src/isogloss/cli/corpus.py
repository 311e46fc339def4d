"""`isogloss corpus prepare|import|audit|segment|split|stats|shard|synthesize`: from recordings to a corpus that can be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isogloss.cli._out import check_file, check_folder
from isogloss.cli._show import counts_table, print_table, progress, stages
from isogloss.core.wording import counted

if TYPE_CHECKING:
    from lhotse import MonoCut

    from isogloss.data.alignments import Alignments

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

Corpus = Annotated[
    Path,
    typer.Argument(
        help="a folder of audio (a subfolder per language), a folder with metadata.csv or .jsonl, a fairseq .tsv, a NeMo manifest, "
        "a Kaldi directory, Lhotse cuts or Shar, or a prepared corpus"
    ),
]
Out = Annotated[Path, typer.Option(help="folder of the new corpus")]
LanguageOption = Annotated[str | None, typer.Option("--language", help="language of utterances that say none")]
Seed = Annotated[int, typer.Option(help="the same seed and cuts give the same result")]
Workers = Annotated[int | None, typer.Option(min=1, help="default: the processors, at most 8")]


_MAX_FAULTS = 20  # names of no known language that are shown


class VadMethod(StrEnum):
    """How speech is found."""

    auto = "auto"
    silero = "silero"
    energy = "energy"


class SplitBy(StrEnum):
    """What stays on one side."""

    speaker = "speaker"
    recording = "recording"
    source = "source"
    shots = "shots"


class ShardFormat(StrEnum):
    """How the audio of a shard is coded."""

    flac = "flac"
    opus = "opus"


class AlignmentKindOption(StrEnum):
    """Who made the alignment."""

    gold = "gold"
    silver = "silver"
    synthetic = "synthetic"


@app.command()
def audit(
    corpus: Corpus,
    out: Annotated[
        Path | None, typer.Option(help="write a corpus of the good recordings, and report.json, here")
    ] = None,
    language: LanguageOption = None,
    ctm: Annotated[
        list[str] | None,
        typer.Option(help="phone=FILE or word=FILE: a CTM file to attach (phones.ctm, words.ctm in the folder are)"),
    ] = None,
    textgrids: Annotated[Path | None, typer.Option(help="folder of TextGrids to attach")] = None,
    alignment_kind: Annotated[
        AlignmentKindOption, typer.Option(help="of --ctm and --textgrids")
    ] = AlignmentKindOption.silver,
    min_seconds: Annotated[float, typer.Option(help="reject shorter utterances")] = 0.1,
    max_seconds: Annotated[float | None, typer.Option(help="reject longer ones")] = None,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="keep recordings of equal content")
    ] = False,
    max_rejected: Annotated[
        float, typer.Option(min=0, max=1, help="exit 1 above this share of bad recordings; duplicates aside")
    ] = 0.01,
    workers: Workers = None,
) -> None:
    """Decode every recording; name each bad one with a reason, keep the rest. used + rejected = input."""
    from isogloss.core.errors import DataError
    from isogloss.data._paths import printable
    from isogloss.data.audit import audit as run_audit
    from isogloss.data.inputs import NO_RECORDINGS, Rejected, form_of, iterate_corpus, write_corpus

    check_folder(out)
    alignments = _alignments(ctm or [], textgrids, alignment_kind)

    def read() -> Iterator[MonoCut | Rejected]:
        for item in iterate_corpus(corpus, language=language):
            for alignment in () if isinstance(item, Rejected) else alignments:
                item = alignment.attach(item)
            yield item

    items: Iterable[MonoCut | Rejected] = read()
    if form_of(corpus) != "shar":  # a shard's audio comes with its cuts: they are taken one by one
        with progress("reading", "headers") as tell:
            items = []
            for item in read():
                items.append(item)
                tell(len(items), None)
    with progress("decoding", "recordings") as tell:
        report = run_audit(
            items,
            min_seconds=min_seconds,
            max_seconds=max_seconds,
            keep_duplicates=keep_duplicates,
            num_workers=workers,
            folder=corpus if form_of(corpus) == "folder" else None,
            progress=tell,
        )
    for alignment in alignments:
        alignment.check_used(report.cuts[0].id if report.cuts else "none")
    if out is not None:
        if report.cuts:
            write_corpus(report.cuts, out)
        out.mkdir(parents=True, exist_ok=True)
        report.write(out / "report.json")
    for rejected in report.rejected:
        typer.echo(f"rejected ({rejected.verdict}) {rejected.id}: {rejected.reason}", err=True)
    for name, text in report.naming_faults[:_MAX_FAULTS]:
        typer.echo(f"warning: `{name}` {text}", err=True)
    if len(report.naming_faults) > _MAX_FAULTS:
        more = len(report.naming_faults) - _MAX_FAULTS
        typer.echo(
            f"warning: and {more:,} more names of no known language; `--out` writes them all to report.json", err=True
        )
    rows = {
        "input": f"{report.num_input:,}",
        "used": f"{len(report.cuts):,} ({report.used_seconds / 3600:.2f} h)",
        "rejected": f"{len(report.rejected):,}",
        **{f"  {verdict}": f"{count:,}" for verdict, count in report.verdicts.items()},
        "warnings": f"{len(report.warnings) + len(report.naming_faults):,}",
    }
    print_table(counts_table(f"audit of {corpus}", rows))
    if not report.num_input:
        raise DataError(NO_RECORDINGS.format(printable(corpus)))
    if not report.cuts:
        typer.echo("isogloss: no recording can be used; the reasons are above", err=True)
        raise typer.Exit(1)
    report.check_budget(max_rejected)


@app.command()
def segment(
    corpus: Corpus,
    out: Out,
    language: LanguageOption = None,
    min_seconds: Annotated[float, typer.Option(help="shortest part")] = 1.0,
    max_seconds: Annotated[float, typer.Option(help="longest part; what is shorter is kept as it is")] = 15.0,
    method: Annotated[VadMethod, typer.Option(help="auto: silero where it is installed, else energy")] = VadMethod.auto,
) -> None:
    """Cut long recordings where nobody speaks; the audio stays where it is, cuts point into it."""
    from isogloss.data.inputs import open_corpus, write_corpus
    from isogloss.data.segment import SegmentSettings
    from isogloss.data.segment import segment as run_segment

    check_folder(out)
    cuts = open_corpus(corpus, language=language)
    with progress("finding speech", "seconds") as tell:
        report = run_segment(
            cuts,
            settings=SegmentSettings(min_seconds=min_seconds, max_seconds=max_seconds),
            method=method.value,
            progress=tell,
        )
    if report.note:
        typer.echo(f"note: {report.note}", err=True)
    for rejected in report.rejected:
        typer.echo(f"rejected ({rejected.verdict}) {rejected.id}: {rejected.reason}", err=True)
    write_corpus(report.cuts, out)
    rows = {
        "method": report.method,
        "recordings": f"{report.seconds_in / 3600:.2f} h",
        "cuts": f"{len(report.cuts):,} ({report.seconds_out / 3600:.2f} h)",
        "without speech, or unreadable": f"{len(report.rejected):,}",
    }
    print_table(counts_table(f"segments of {corpus}", rows))


@app.command()
def split(
    corpus: Corpus,
    out: Annotated[Path, typer.Option(help="folder of the parts, each a corpus of its own")],
    by: Annotated[
        SplitBy, typer.Option(help="speakers apart, recordings apart, whole sources held out, or few shots")
    ] = SplitBy.speaker,
    share: Annotated[
        list[str] | None, typer.Option(help="NAME=SHARE, as often as needed; default train=0.8 test=0.2")
    ] = None,
    test_source: Annotated[list[str] | None, typer.Option(help="with --by source: a source to hold out")] = None,
    shared_languages: Annotated[
        bool, typer.Option("--shared-languages", help="with --by source: only languages that both sides have")
    ] = False,
    shots: Annotated[
        list[int] | None, typer.Option(help="with --by shots: cuts per language; default 1, 5, 10")
    ] = None,
    language: LanguageOption = None,
    seed: Seed = 0,
) -> None:
    """Divide a corpus so that no speaker, recording or content is on two sides."""
    from isogloss.core.errors import ConfigError
    from isogloss.data import split as splits
    from isogloss.data.inputs import open_corpus, write_corpus
    from isogloss.data.stats import format_duration

    if by is SplitBy.source and not test_source:
        raise ConfigError("`--by source` needs `--test-source NAME`: the source to hold out")
    check_folder(out)
    cuts = open_corpus(corpus, language=language)
    if by is SplitBy.source:
        parts = splits.split_by_source(cuts, test_source or [], only_shared_languages=shared_languages)
    elif by is SplitBy.shots:
        drawn = splits.draw_few_shots(cuts, shots or [1, 5, 10], seed=seed)
        parts = {f"shots-{k}": part for k, part in drawn.items()}
    else:
        divide = splits.split_by_speaker if by is SplitBy.speaker else splits.split_by_recording
        parts = divide(cuts, _shares(share or ["train=0.8", "test=0.2"]), seed=seed)
    rows = {}
    for name, part in parts.items():
        write_corpus(part, out / name)
        speakers = {cut.supervisions[0].speaker for cut in part if cut.supervisions} - {None}
        seconds = sum(cut.duration for cut in part)
        rows[name] = f"{counted(len(part), 'cut')}, {format_duration(seconds)}, " + (
            counted(len(speakers), "speaker") if speakers else "unknown speakers"
        )
    print_table(counts_table(f"{corpus} by {by.value}", rows))


@app.command()
def stats(
    corpora: Annotated[list[Path], typer.Argument(help="one or more corpora, in any accepted form")],
    language: LanguageOption = None,
    out: Annotated[list[Path] | None, typer.Option(help="write the table to a .md, .csv or .json file")] = None,
    expect_utterances: Annotated[
        int | None, typer.Option(help="a stated total, which must be the sum of the rows")
    ] = None,
    expect_hours: Annotated[float | None, typer.Option(help="a stated total, to half a minute per row")] = None,
) -> None:
    """Show the corpus table: licence, utterances and hours by gender, speakers, mean duration, speech type; and totals."""
    from isogloss.core.errors import ConfigError
    from isogloss.data._write import write_text
    from isogloss.data.inputs import open_corpus
    from isogloss.data.stats import check_totals, corpus_stats

    for path in out or []:
        if path.suffix not in (".md", ".csv", ".json"):
            raise ConfigError(f"`--out {path}` must end in .md, .csv or .json")
        check_file(path, is_replaced=True)
    with progress("reading", "cuts") as tell:
        cuts = []
        for corpus in corpora:
            for cut in open_corpus(corpus, language=language):
                cuts.append(cut)
                tell(len(cuts), None)
    table = corpus_stats(cuts)
    print_table(table.to_rich())
    for path in out or []:
        text = {".md": table.to_markdown, ".csv": table.to_csv, ".json": table.to_json}[path.suffix]()
        write_text(path, text)
    check_totals(
        table.rows, num_utterances=expect_utterances, seconds=None if expect_hours is None else expect_hours * 3600
    )


@app.command()
def shard(
    corpus: Corpus,
    out: Annotated[Path, typer.Option(help="new folder for the shards")],
    shard_size: Annotated[int, typer.Option(min=1, help="cuts per shard")] = 1000,
    audio_format: Annotated[
        ShardFormat, typer.Option(help="flac keeps 16-bit recordings; opus takes a fifth")
    ] = ShardFormat.flac,
    language: LanguageOption = None,
) -> None:
    """Write tar archives (Lhotse Shar) that are read front to back: for many small files on slow storage."""
    from isogloss.data.inputs import open_corpus
    from isogloss.data.shards import shard as write_shards

    check_folder(out)
    cuts = open_corpus(corpus, language=language)
    with progress("writing", "cuts") as tell:
        report = write_shards(cuts, out, shard_size=shard_size, audio_format=audio_format.value, progress=tell)
    for name, reason in report.rejected:
        typer.echo(f"rejected {name}: {reason}", err=True)
    rows = {
        "shards": f"{report.num_shards:,}",
        "cuts": f"{report.num_cuts:,} ({report.seconds / 3600:.2f} h)",
        "rejected": f"{len(report.rejected):,}",
    }
    print_table(counts_table(f"shards of {corpus}", rows))
    if report.rejected:
        raise typer.Exit(1)


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="a corpus that isogloss can obtain: debian")],
    out: Out,
    language: Annotated[list[str] | None, typer.Option(help="only these languages, as often as needed")] = None,
    package: Annotated[list[str] | None, typer.Option(help="only these packages")] = None,
    max_megabytes: Annotated[float | None, typer.Option(min=0, help="download at most this much")] = None,
    workers: Workers = None,
) -> None:
    """Obtain a public corpus and write it as cuts; says what it downloads."""
    from isogloss.core.errors import ConfigError
    from isogloss.core.languages import normalize_language
    from isogloss.core.lookup import find_module
    from isogloss.data.inputs import open_corpus
    from isogloss.data.stats import corpus_stats

    check_folder(out)
    module = find_module("isogloss.data.corpora", name)
    run = vars(module).get("prepare")
    if run is None:
        raise ConfigError(f"`{name}` cannot be obtained; speech is synthesised with `isogloss corpus synthesize`")
    tags = [normalize_language(code).tag for code in language] if language else None
    planned = vars(module)["plan"](tags, packages=package, max_megabytes=max_megabytes)
    typer.echo(planned.describe(), err=True)
    with stages() as tell:
        run(out, languages=tags, packages=package, max_megabytes=max_megabytes, workers=workers, progress=tell)
    print_table(
        corpus_stats(open_corpus(out)).to_rich(f"{name}; reasons for what was left out are in {out / 'report.json'}")
    )


@app.command("import")
def import_downloaded(
    name: Annotated[str, typer.Argument(help="fleurs, common-voice, voxlingua107 or adi17")],
    folder: Annotated[Path, typer.Argument(help="where its archives were unpacked")],
    out: Annotated[Path, typer.Option(help="folder of the parts, each a corpus of its own: train, dev, test")],
) -> None:
    """Make corpora of a downloaded one, with its own parts, labels and speakers; the audio stays where it is."""
    from isogloss.data.downloads import import_corpus
    from isogloss.data.stats import format_duration

    check_folder(out)
    found = import_corpus(name, folder, out)
    for rejected in found.rejected[:20]:
        typer.echo(f"rejected ({rejected.verdict}) {rejected.id}: {rejected.reason}", err=True)
    rows = {
        part: f"{counted(count, 'utterance')}, {format_duration(seconds)}, {counted(found.languages[part], 'language')}"
        for part, (count, seconds) in found.counts.items()
    }
    print_table(counts_table(f"{name} in {out}", {**rows, "rejected": f"{len(found.rejected):,}"}))


@app.command()
def synthesize(
    out: Out,
    language: Annotated[list[str], typer.Option(help="as often as needed")],
    voices: Annotated[int, typer.Option(min=1, help="speakers per language")] = 4,
    utterances: Annotated[int, typer.Option(min=1, help="utterances per voice and language")] = 50,
    channel: Annotated[list[str] | None, typer.Option(help="clean, room, noisy, telephone; voices take turns")] = None,
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 1,
) -> None:
    """Synthesise parallel speech with exact phone alignments (espeak-ng, extra `phones`)."""
    from isogloss.data.corpora.synthetic import synthesize as run
    from isogloss.data.inputs import open_corpus
    from isogloss.data.stats import corpus_stats

    check_folder(out)
    with stages() as tell:
        run(
            out,
            languages=language,
            voices=voices,
            utterances_per_voice=utterances,
            channels=channel or ["clean"],
            seed=seed,
            workers=workers,
            progress=tell,
        )
    print_table(corpus_stats(open_corpus(out)).to_rich("synthesised speech"))


def _shares(texts: list[str]) -> dict[str, float]:
    from isogloss.core.errors import ConfigError

    shares = {}
    for text in texts:
        name, sign, value = text.partition("=")
        try:
            shares[name] = float(value)
        except ValueError:
            sign = ""
        if not sign or not name or "/" in name or name.startswith("."):
            raise ConfigError(f"`--share {text}` must look like `--share train=0.8`")
    return shares


def _alignments(ctm: list[str], textgrids: Path | None, kind: AlignmentKindOption) -> list[Alignments]:
    from isogloss.core.errors import ConfigError
    from isogloss.data.alignments import ctm_alignments, textgrid_alignments

    found = []
    for option in ctm:
        level, _, path = option.partition("=")
        if level not in ("phone", "word") or not path:
            raise ConfigError(f"`--ctm {option}` must look like `--ctm phone=FILE` or `--ctm word=FILE`")
        found.append(ctm_alignments(path, "phone" if level == "phone" else "word", kind.value))
    return [*found, textgrid_alignments(textgrids, kind=kind.value)] if textgrids is not None else found
