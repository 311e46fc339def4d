"""`isogloss adapt --from MODEL --data DIR --out RUN`: make a model good for target languages and channels, from their audio alone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from isogloss.adapt.run import AdaptResult

app = typer.Typer(add_completion=False)


class ResumeChoice(StrEnum):
    """What to do where RUN holds checkpoints, or none."""

    auto = "auto"
    never = "never"
    must = "must"


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
    probe_data: Annotated[
        Path | None, typer.Option(help="labelled corpus of the quick probe; the target audio by default")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, as often as needed", metavar="KEY=VALUE")
    ] = None,
    resume: Annotated[
        ResumeChoice, typer.Option(help="auto: continue where there are checkpoints; never; must")
    ] = ResumeChoice.auto,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and say what would be trained")] = False,
) -> None:
    """Adapt a model to unlabelled audio, stop where held-out audio no longer gets better, and say what was gained and lost.

    The held-out part is divided from DIR by speaker (by recording where they are unknown); the best update becomes the model.
    Audio of a --test corpus is refused by recording, by file and by content. Exit codes are those of `isogloss pretrain`.
    """
    import json

    from isogloss.adapt.base import find_method, load_adapt
    from isogloss.adapt.run import adapt as run
    from isogloss.core.config import to_toml
    from isogloss.core.dist import launched_rank
    from isogloss.training.recipe import find_recipe

    find_method(method)
    settings = [*(overrides or [])]
    settings += [f"start.model={json.dumps(str(model))}", f"data.path={json.dumps(str(data))}"]
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
    if dry_run:
        typer.echo(to_toml(resolved.tree()))
        return
    result = run(
        resolved,
        out,
        tests=test or [],
        source=source,
        replay_data=replay_data,
        probe_data=probe_data,
        resume=resume.value,
    )
    if launched_rank() == 0:
        _show(result)


def _show(result: AdaptResult) -> None:
    from isogloss.cli._show import print_table
    from isogloss.evaluation.tables import to_rich

    summary = result.summary
    print_table(to_rich(result.records, title=f"{summary['method']['name']}: {summary['objective']}"))
    rates = summary["learning_rate"]
    if rates:
        typer.echo(
            f"learning rate: {rates['peak']:.3g} at its peak, {rates['mean']:.3g} on average, {rates['last']:.3g} at the last update"
        )
    early = f"early, of {summary['planned_updates']}" if summary["stopped_early"] else "as planned"
    typer.echo(
        f"stopped after {result.last_step} updates ({early}; {summary['passes']:.2f} passes); held-out {summary['held_out_metric']} "
        f"{summary['held_out_before']:.4f} → {summary['held_out_best']:.4f}, divided by {summary['held_out_by']}"
    )
    if result.step == 0:
        typer.echo(f"no update was better than the start, so the model is the start, unchanged: {result.model_dir}")
    else:
        typer.echo(f"model of update {result.step}: {result.model_dir}")
