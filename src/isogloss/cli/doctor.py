"""`isogloss doctor`: what is installed, what works, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)

GOOD, NOTE, WARNING, FAULT = "good", "note", "warning", "fault"
_MARKS = {GOOD: "[green]✓[/]", NOTE: "·", WARNING: "[yellow]![/]", FAULT: "[red]✗[/]"}

Finding = tuple[str, str, str]  # (verdict, what, text)


@app.command()
def doctor(
    folder: Annotated[Path, typer.Option(help="where data and runs will lie: its free space is told")] = Path(),
) -> None:
    """Show versions, devices, codecs and disk; exit 1 where something is broken."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    findings = [*versions(), *conflicts(_installed()), *devices(), *codecs(), *extras(), *disk(folder)]
    table = Table(box=None, pad_edge=False, show_header=False)
    for verdict, what, text in findings:
        table.add_row(_MARKS[verdict], what, escape(text))
    console = Console()
    console.print(table)
    faults = [what for verdict, what, _ in findings if verdict == FAULT]
    if faults:
        console.print(f"[red]broken: {', '.join(faults)}[/]")
        raise typer.Exit(1)


def versions() -> list[Finding]:
    """Return the versions that matter."""
    import platform

    import isogloss

    installed = _installed()
    found = [(GOOD, "isogloss", isogloss.__version__), (GOOD, "python", platform.python_version())]
    for package in ("torch", "numpy", "lhotse", "soundfile", "soxr", "safetensors", "transformers"):
        verdict = GOOD if package in installed else NOTE if package == "transformers" else FAULT
        found.append((verdict, package, installed.get(package, "not installed")))
    return found


def conflicts(installed: dict[str, str], *, torch_has_cuda: bool | None = None) -> list[Finding]:
    """Return the combinations that are known to break or to harm."""
    if torch_has_cuda is None:
        import torch

        torch_has_cuda = torch.version.cuda is not None
    found: list[Finding] = []
    torchaudio = installed.get("torchaudio")
    if torchaudio and not torch_has_cuda and "+cpu" not in torchaudio:
        text = (
            f"{torchaudio} beside a CPU build of torch cannot load its library and breaks the import of transformers' speech "
            "classes; isogloss does not need it: `pip uninstall torchaudio`"
        )
        found.append((WARNING, "torchaudio", text))
    version = installed.get("torch", "")
    if _release(version) and _release(version) < (2, 10):
        found.append(
            (FAULT, "torch", f"{version} can be made to run code by a weights file (CVE-2026-24747); use 2.10 or later")
        )
    found += [
        (
            FAULT,
            package,
            f"{installed[package]} steals credentials (GHSA-w37p-236h-pfx3); remove it, change your passwords",
        )
        for package in ("lightning", "pytorch-lightning")
        if installed.get(package) in ("2.6.2", "2.6.3")
    ]
    return found


def devices() -> list[Finding]:
    """Return processors and accelerators."""
    import os

    import torch

    from isogloss.core.threads import usable_cores
    from isogloss.training.provenance import hardware

    found = [(GOOD, "cpu", f"{hardware()['cpu']}, {usable_cores()} cores usable, {hardware()['memory_gb']} GB")]
    if "OMP_NUM_THREADS" in os.environ:
        found.append((NOTE, "threads", f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} is respected"))
    if not torch.cuda.is_available():
        found.append((NOTE, "gpu", "none; training runs on the CPU"))
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            (GOOD, "gpu", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}")
        )
    return found


def codecs() -> list[Finding]:
    """Encode and decode a tone in each format that corpora come in."""
    import io

    import numpy as np
    import soundfile

    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    found: list[Finding] = []
    for name, kind, subtype in (
        ("wav", "WAV", "PCM_16"),
        ("flac", "FLAC", "PCM_16"),
        ("ogg vorbis", "OGG", "VORBIS"),
        ("opus", "OGG", "OPUS"),
        ("mp3", "MP3", "MPEG_LAYER_III"),
        ("gsm", "WAV", "GSM610"),
    ):
        stream = io.BytesIO()
        rate = 8_000 if name == "gsm" else 16_000
        try:
            soundfile.write(stream, tone, rate, format=kind, subtype=subtype)
            stream.seek(0)
            decoded, _ = soundfile.read(stream)
            works = abs(float(decoded.std()) - float(tone.std())) < 0.05
            found.append(
                (GOOD if works else FAULT, name, "encodes and decodes" if works else "decodes to something else")
            )
        except (soundfile.LibsndfileError, ValueError, RuntimeError) as error:
            found.append((FAULT if name in ("wav", "flac") else WARNING, name, f"does not work: {error}"))
    return found


def extras() -> list[Finding]:
    """Return which optional parts are there."""
    installed = _installed()
    parts = {
        "phones": "espeakng-loader",
        "vad": "silero-vad",
        "debian": "av",
        "energy": "nvidia-ml-py",
    }
    return [
        (GOOD, f"extra {extra}", f"{package} {installed[package]}")
        if package in installed
        else (NOTE, f"extra {extra}", f"not installed; `pip install 'isogloss[{extra}]'`")
        for extra, package in parts.items()
    ]


def disk(folder: Path) -> list[Finding]:
    """Return the free space where data and runs will lie."""
    import shutil

    try:
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return [(FAULT, "disk", f"{folder}: {error.strerror}")]
    return [(GOOD if free > 10 else WARNING, "disk", f"{free:.1f} GB free in {folder.resolve()}")]


def _installed() -> dict[str, str]:
    from isogloss.training.provenance import installed_packages

    return {name.lower().replace("_", "-"): version for name, version in installed_packages().items()}


def _release(version: str) -> tuple[int, ...]:
    parts = version.partition("+")[0].split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) and version else ()
