"""What the tests of the loop share: a tiny corpus, a small objective, jobs, and processes that are killed."""

from __future__ import annotations

import faulthandler
import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from torch import Tensor, nn

from isogloss.core import dist
from isogloss.core.errors import IsoglossError
from isogloss.core.rng import derive_seed
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.data.index import CorpusIndex
from isogloss.data.loader import DataConfig, SpeechLoader
from isogloss.encoders.base import Encoder
from isogloss.encoders.presets import build_encoder, preset
from isogloss.objectives.base import Objective, Watch
from isogloss.training.job import Job
from isogloss.training.loop import run_job, train
from isogloss.training.optim import OptimConfig
from isogloss.training.parallel import Learner, explained_failures, set_threads
from isogloss.training.preempt import stop_on_signals
from isogloss.training.recipe import TrainingConfig, load_recipe
from isogloss.training.schedule import ScheduleConfig


def make_corpus(folder: Path, num_utterances: int = 24) -> Path:
    """Write coloured noise of 0.3 to 1.2 s by four speakers as a prepared corpus."""
    random = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    cuts = []
    for number in range(num_utterances):
        samples = np.cumsum(random.normal(size=int(random.uniform(0.3, 1.2) * 16_000)))
        samples = (samples - samples.mean()) / (4 * samples.std())
        path = folder / f"utterance_{number:03d}.wav"
        soundfile.write(path, samples.clip(-1, 1), 16_000, subtype="PCM_16")
        recording = Recording.from_file(path)
        supervision = SupervisionSegment(
            f"s{number}",
            recording.id,
            0,
            recording.duration,
            speaker=f"speaker{number % 4}",
            language="mul",
            text="ab ba",
        )
        cuts.append(MonoCut(recording.id, 0, recording.duration, 0, recording=recording, supervisions=[supervision]))
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return folder


class NextFrame(Objective):
    """Predict each frame's latents from the state two frames earlier; it logs, dropouts and counts like a real objective."""

    watches = (Watch("spread", low=1e-4, patience=3, meaning="the latents are constant", advice="lower the rate"),)

    def __init__(self, encoder: Encoder, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.width, encoder.latent_width)
        self.register_buffer("progress", torch.zeros(()))
        self.poison: Callable[[SpeechBatch], bool] = lambda batch: False

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        latents = encoder.frontend(batch.audio).latents
        states = encoder.context(latents).last
        total, count = latents.values_ND.new_zeros(()), 0
        for state_SD, latent_SD in zip(states.split(), latents.split(), strict=True):
            guess_SD = self.head(self.dropout(state_SD[:-2]))
            total = total + (guess_SD - latent_SD[2:].detach()).float().square().mean(-1).sum()
            count += len(guess_SD)
        if self.poison(batch):
            total = total * float("nan")
        spread = latents.values_ND.detach().float().std(0).mean()
        return LossTerms(total, count, {"spread": (spread * count, count)})

    def after_step(self, progress: float) -> None:
        self.progress.fill_(progress)


def save(learner: Learner, folder: Path, extra: dict[str, Any]) -> None:
    """Write a model folder as plainly as can be."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file(learner.state_dict(), folder / "model.safetensors")
    (folder / "extra.json").write_text(json.dumps(extra))


def make_job(
    corpus: Path,
    *,
    encoder: str = "cpc-tiny",
    updates: int = 12,
    poison: Callable[[SpeechBatch], bool] | None = None,
    loader: Any = None,
    data: Mapping[str, Any] | None = None,
    objective: Callable[[Encoder], nn.Module] = NextFrame,
    **training: Any,
) -> Job:
    """Return a job over a corpus: 24 utterances make six updates a pass, of four bins each."""
    settings = DataConfig(
        path=str(corpus),
        **{
            "seconds_per_update": 3.2,
            "micro_batch_seconds": 1.3,
            "max_seconds": 1.2,
            "min_seconds": 0.1,
            "num_workers": 0,
            "bins_multiple_of": 4,
            **(data or {}),
        },
    )
    config = TrainingConfig(**{"updates": updates, "log_every": 1, "checkpoint_every": 1, "keep": 1000, **training})
    config_encoder = preset(encoder)

    def build() -> Learner:
        torch.manual_seed(derive_seed(config.seed, "weights"))
        built = build_encoder(config_encoder)
        trainable = objective(built)
        if poison is not None:
            trainable.poison = poison  # type: ignore[assignment]
        return Learner(built, trainable)

    index = CorpusIndex.open(corpus)
    learner = build()
    return Job(
        build=build,
        save=save,
        learner=learner,
        loader=loader
        or SpeechLoader(
            index,
            settings,
            seed=config.seed,
            rank=dist.rank(),
            world_size=dist.world_size(),
            num_frames=learner.encoder.num_frames,
            grouping=learner.objective.grouping,  # type: ignore[arg-type]
        ),
        total_updates=updates,
        optim=OptimConfig(lr=1e-3, clip=1.0),
        schedule=ScheduleConfig(),
        training=config,
        config={"training": config.model_dump(mode="json"), "data": settings.model_dump(mode="json")},
        manifest=index.manifest,
        plan_multiple=4,
    )


def run(job: Job, run_dir: Path, **options: Any) -> Any:
    """Run a job in this process on the CPU."""
    with stop_on_signals() as stop:
        return run_job(job, run_dir, torch.device("cpu"), stop, **options)


def read_log(run_dir: Path, event: str = "update") -> list[dict[str, Any]]:
    """Return the log's rows of one event."""
    lines = (run_dir / "log.jsonl").read_text().split("\n")[:-1]  # what follows the last newline is being written
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["event"] == event]


def curve(run_dir: Path) -> dict[int, tuple[float, float, float]]:
    """Return loss, gradient norm and metric of each update, exactly as logged."""
    return {row["step"]: (row["loss"], row["grad_norm"], row["metrics"]["spread"]) for row in read_log(run_dir)}


def weights(run_dir: Path, step: int) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint."""
    from safetensors.torch import load_file

    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    return load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")


# Ranks are forked from a server that has imported everything and computed nothing: they start in milliseconds, and inherit
# no threads (OpenMP's stand still in a child of a process that has used them).
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["isogloss.training.loop"])


class Forked:
    """A rank in a process of its own. What it says goes to a file."""

    def __init__(self, corpus: Path, run_dir: Path, options: dict[str, Any], environment: dict[str, str]) -> None:
        descriptor, name = tempfile.mkstemp(suffix=".stderr")
        os.close(descriptor)
        self._said = Path(name)
        self.process = SERVER.Process(target=forked_main, args=(corpus, run_dir, options, environment, self._said))
        self.process.start()

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)  # type: ignore[arg-type]

    def send_to_group(self, number: int) -> None:
        os.killpg(self.process.pid, number)  # type: ignore[arg-type]

    def is_running(self) -> bool:
        return self.process.is_alive()

    def finish(self, timeout: float) -> tuple[int | None, str]:
        """Return exit code and standard error; a process that does not end in time is killed, its code is None."""
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        said = self._said.read_text()
        self._said.unlink()
        return code, said


def launch(corpus: Path, run_dir: Path, *, ranks: int = 1, **options: Any) -> list[Forked]:
    """Start ranks as `torchrun` would, to train a job of these options."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        Forked(corpus, run_dir, options, {"RANK": str(rank), "LOCAL_RANK": str(rank), **group} if ranks > 1 else {})
        for rank in range(ranks)
    ]


def finish(ranks: list[Forked], timeout: float = 60) -> list[tuple[int | None, str]]:
    """Return (exit code, standard error) of each rank."""
    return [rank.finish(timeout) for rank in ranks]


def wait_for_step(run_dir: Path, step: int, ranks: list[Forked], timeout: float = 60) -> None:
    """Return when the log has reached a step (or a rank has ended)."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and all(rank.is_running() for rank in ranks):
        if (run_dir / "log.jsonl").exists() and any(row["step"] >= step for row in read_log(run_dir)):
            return
        time.sleep(0.01)


def spread_of_tone(encoder: Encoder, step: int) -> dict[str, float]:
    """Probe an encoder with a tone of half a second."""
    tone_T = torch.sin(torch.arange(8000) / 20)
    return {"spread": float(encoder([tone_T]).last.values_ND.std())}


def forked_main(corpus: Path, run_dir: Path, options: dict[str, Any], environment: dict[str, str], said: Path) -> None:
    """Train in this process; errors end as they do on the command line."""
    os.setpgid(0, 0)
    file = os.open(said, os.O_WRONLY)
    os.dup2(file, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    faulthandler.enable()  # a crash says where
    os.environ.update(environment)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    recipe, overrides = options.pop("recipe", None), options.pop("overrides", [])
    bad_rank, frozen_rank, short_rank = (options.pop(name, None) for name in ("bad_rank", "frozen_rank", "short_rank"))
    try:
        if recipe is not None:
            train(load_recipe(recipe, overrides), run_dir)
            return
        set_threads(None)
        timeout = 2 * options.get("timeout_seconds", 30)
        with dist.process_group(timeout) as device, stop_on_signals() as stop, explained_failures():
            if bad_rank is not None:
                options["poison"] = lambda batch: dist.rank() == bad_rank
            if frozen_rank == dist.rank():
                options["poison"] = lambda batch: bool(os.kill(os.getpid(), signal.SIGSTOP))
            if short_rank == dist.rank():
                options["loader"] = list(itertools.islice(make_job(corpus).loader, 7))
            probe = spread_of_tone if options.get("probe_every") else None
            run_job(make_job(corpus, **options), run_dir, device, stop, probe=probe)
    except IsoglossError as error:
        sys.stderr.write(f"isogloss: {error}\n")
        sys.exit(error.exit_code)
