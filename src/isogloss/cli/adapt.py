"""`isogloss adapt --from MODEL --data DIR --out RUN`: make a model good for target languages and channels, from their audio alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isogloss.cli._run import DryRun, Overrides, Resume, ResumeChoice, energy_record, quoted, say_warnings

if TYPE_CHECKING:
    from isogloss.adapt.run import AdaptResult

app = typer.Typer(add_completion=False)


@app.command()
def adapt(
    model: Annotated[
        Path, typer.Option("--from", help="model to adapt: isogloss or Hugging Face folder, fairseq file")
    ],
    data: Annotated[Path, typer.Option(help="unlabelled target audio: prepared corpus, folder, cuts or Shar")],
    out: Annotated[Path, typer.Option(help="folder of the run: checkpoints, log.jsonl, model/, results.jsonl")],
    method: Annotated[str, typer.Option(help="file in isogloss/adapt: continued, …")] = "continued",
    recipe: Annotated[
        str | None, typer.Option(help="TOML file or shipped recipe; adapt/METHOD by default", show_default=False)
    ] = None,
    test: Annotated[
        list[Path] | None, typer.Option(help="corpus that must not be heard, as often as needed", metavar="DIR")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="corpus of the source languages: how much of them is forgotten")
    ] = None,
    replay_data: Annotated[Path | None, typer.Option(help="corpus that is mixed in, with --replay")] = None,
    replay: Annotated[
        float | None, typer.Option(help="share of the seconds of training from --replay-data", min=0.0, max=0.95)
    ] = None,
    passes: Annotated[float | None, typer.Option(help="passes through the audio, at most; 0 changes nothing")] = None,
    lr: Annotated[float | None, typer.Option(help="peak learning rate")] = None,
    freeze: Annotated[
        list[str] | None, typer.Option(help="frontend (default), none, or names such as objective.quantizer")
    ] = None,
    units: Annotated[Path | None, typer.Option(help="units of the target audio, for HuBERT and its like")] = None,
    replay_units: Annotated[Path | None, typer.Option(help="units of --replay-data, of the same clusters")] = None,
    source_units: Annotated[Path | None, typer.Option(help="units of --source, of the same clusters")] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            help="finished runs of rivals and controls to show beside this one, as often as needed", metavar="RUN"
        ),
    ] = None,
    probe_data: Annotated[
        Path | None, typer.Option(help="labelled corpus of the quick probe; the target audio by default")
    ] = None,
    overrides: Overrides = None,
    resume: Resume = ResumeChoice.auto,
    dry_run: DryRun = False,
) -> None:
    """Adapt a model to unlabelled audio, stop where held-out audio no longer gets better, and say what was gained and lost.

    The held-out part is divided from DIR by speaker (by recording where they are unknown); one half of it chooses the update that
    becomes the model, the other is reported. Audio of a --test corpus is refused by recording, by file and by content. Figures of
    sub-networks are shown beside random masks and one-hot (--beside). Exit codes are those of `isogloss pretrain`.
    """
    import json

    from isogloss.adapt._beside import check_rivals
    from isogloss.adapt.base import find_method, load_adapt
    from isogloss.adapt.run import adapt as run
    from isogloss.core.config import to_toml
    from isogloss.core.dist import launched_rank
    from isogloss.training.recipe import find_recipe

    find_method(method)
    settings = [*(overrides or [])]
    settings += [f"start.model={quoted(model)}", f"data.path={quoted(data)}"]
    if units is not None:
        settings.append(f"data.units={quoted(units)}")
    if recipe is None or method != "continued":
        settings.append(f'method.name="{method}"')
    if passes is not None:
        settings.append(f"training.passes={passes}")
    if lr is not None:
        settings.append(f"optim.lr={lr}")
    if replay is not None:
        settings.append(f"adapt.replay={replay}")
    if freeze:
        settings.append(f"start.frozen={json.dumps([] if freeze == ['none'] else freeze)}")
    resolved = load_adapt(find_recipe(recipe or f"adapt/{method}"), settings)
    is_main = launched_rank() == 0
    unguarded = ["no `--test` corpus was given, so nothing keeps test audio from being heard"] if not test else []
    say_warnings([*resolved.warnings(), *unguarded], is_main)
    check_rivals(resolved, beside or [], replay_data)
    if dry_run:
        typer.echo(to_toml(resolved.tree()))
        return
    with energy_record(out, is_main):
        result = run(
            resolved,
            out,
            tests=test or [],
            source=source,
            replay_data=replay_data,
            probe_data=probe_data,
            replay_units=None if replay_units is None else str(replay_units),
            source_units=None if source_units is None else str(source_units),
            resume=resume.value,
        )
    if is_main:
        _show(result, out, beside or [])


def _show(result: AdaptResult, out: Path, others: list[Path]) -> None:
    from isogloss.adapt._beside import CONTROLS, beside, needs_controls
    from isogloss.adapt._outcome import outcome
    from isogloss.cli._show import print_table
    from isogloss.evaluation.tables import to_rich, write_results

    summary = result.summary
    compared = beside(out, others) if others else None
    missing = [*CONTROLS] if compared is None else compared.missing
    if needs_controls(summary["method"]) and missing:
        typer.echo(
            f"figures of sub-networks are shown beside random masks and one-hot, since a mask also tells the language; missing: "
            f"{', '.join(missing)}. Run the same with `--set method.importance=random` and with `--method one_hot`, then this again with "
            f"`--beside` for each; the figures are in {out / 'results.jsonl'}"
        )
    else:
        if compared is not None:
            write_results(out / "beside.jsonl", compared.differences)
            print_table(to_rich(compared.differences, title=f"{summary['method']['name']} against its rivals, paired"))
            for note in compared.notes:
                typer.echo(note)
        records = result.records if compared is None else compared.records
        print_table(to_rich(records, title=f"{summary['method']['name']}: {summary['objective']}"))
    rates = summary["learning_rate"]
    if rates:
        typer.echo(
            f"learning rate: {rates['peak']:.3g} at its peak, {rates['mean']:.3g} on average, {rates['last']:.3g} at the last update"
        )
    early = f"early, of {summary['planned_updates']}" if summary["stopped_early"] else "as planned"
    typer.echo(
        f"stopped after {result.last_step} updates ({early}; {summary['passes']:.2f} passes); held-out {summary['held_out_metric']} "
        f"{summary['held_out_before']:.4f} → {summary['held_out_best']:.4f} where it chose among {summary['models_compared']} models, "
        f"held out by {summary['held_out_by']}"
    )
    if summary["chosen_and_reported_on"]:
        languages = ", ".join(name or "unknown" for name in summary["chosen_and_reported_on"])
        typer.echo(
            f"too little held-out audio to report on other than chose the update, so figures flatter: {languages}"
        )
    for note in summary["notes"]:
        typer.echo(note)
    typer.echo(outcome(summary, result.model_dir))
