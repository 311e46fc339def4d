"""The only loop: plain PyTorch for one process, DDP and FSDP2, for pretraining, adaptation and fine-tuning."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from isogloss.core import dist
from isogloss.core.errors import CheckpointError, TrainingError
from isogloss.core.rng import derive_seed
from isogloss.core.types import LossTerms
from isogloss.data.loader import Update
from isogloss.encoders.base import Encoder
from isogloss.training.averages import Reducer, Sums
from isogloss.training.by_language import follow_languages
from isogloss.training.checkpoint import Checkpoints, first_non_finite, gather_tensors, load_tensors, read_state
from isogloss.training.finetune import FinetuneRecipe, build_finetune_job
from isogloss.training.job import Job, build_job
from isogloss.training.logging import RunLog
from isogloss.training.optim import build_optimizer, set_learning_rate
from isogloss.training.parallel import (
    explained_failures,
    on_main,
    parallelize,
    set_threads,
    unsharded,
    without_sync,
)
from isogloss.training.preempt import EXIT_CODES, PreemptedError, StopRequest, stop_on_signals
from isogloss.training.recipe import Recipe
from isogloss.training.rundir import Resume, prepare_run, run_lock, write_model
from isogloss.training.schedule import learning_rate_scale
from isogloss.training.stall import StallWatch
from isogloss.training.watchdog import Watchdog

MAX_SKIPPED = 3  # updates in a row with a non-finite loss or gradient; one more stops the run
MAX_FAILED_SAVES = 3
PROBE_ALLOWANCE = 10  # a probe may take so many times longer than an update before it counts as a stall

Probe = Callable[[Encoder, int], dict[str, Any]]


class Judge(Protocol):
    """A probe that also says when the run has learned enough, and which of its checkpoints is the model.

    Whatever it remembers must follow from the logged results: a resumed run asks a new one.
    """

    def __call__(self, encoder: Encoder, step: int) -> dict[str, Any]:
        """Return what is logged."""
        ...

    def enough(self, step: int) -> bool:
        """Return whether the run may end after this update; the same on every rank."""
        ...

    def best(self, last: int) -> int:
        """Return the update whose checkpoint becomes the model, at most `last`; 0 for the model that the run starts from."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves: the last update, the loss of the last logged interval, and where the model is."""

    step: int
    loss: float
    run_dir: Path
    model_dir: Path
    audio_seconds: float
    seconds: float


def train(
    recipe: Recipe | FinetuneRecipe,
    run_dir: Path | str,
    *,
    resume: Resume = "auto",
    allow_data_change: bool = False,
    probe: Probe | None = None,
) -> TrainResult:
    """Train what a recipe says, or continue it, and leave checkpoints, `log.jsonl` and `model/` in `run_dir`.

    Under `torchrun` every rank calls this. `probe(encoder, step)` is called on every rank each `training.probe_every` updates
    and its results are logged. `resume`: "auto" continues where there are checkpoints, "never" refuses a folder that has some,
    "must" refuses one that has none. Raises `IsoglossError` subclasses; `PreemptedError` after a signal, when all is saved.
    """
    set_threads(recipe.training.threads)
    # The stall watch, which can say more, comes before the time limit of the exchanges.
    with (
        dist.process_group(1.2 * recipe.training.timeout_seconds) as device,
        stop_on_signals() as stop,
        explained_failures(),
    ):
        build = build_finetune_job if isinstance(recipe, FinetuneRecipe) else build_job
        job = build(recipe, allow_data_change=allow_data_change)  # type: ignore[arg-type]
        return run_job(
            job,
            Path(run_dir),
            device,
            stop,
            resume=resume,
            allow_data_change=allow_data_change,
            probe=probe,
        )


def run_job(
    job: Job,
    run_dir: Path,
    device: torch.device,
    stop: StopRequest,
    *,
    resume: Resume = "auto",
    allow_data_change: bool = False,
    probe: Probe | None = None,
    judge: Judge | None = None,
) -> TrainResult:
    """Run a job from its newest good checkpoint, or from the start, to its end, and write the model.

    A `judge` takes the place of the probe; where it finds no update better than the start, no model is written.
    """
    with run_lock(run_dir):
        loop = Loop(job, run_dir, device, stop, probe=judge or probe, judge=judge)
        folder = on_main(lambda: prepare_run(job, run_dir, loop.log, resume, allow_data_change=allow_data_change))
        if folder is not None:
            loop.load(folder)
        result = loop.run()
        chosen = result.step if judge is None else judge.best(result.step)
        if chosen:
            on_main(lambda: write_model(job, loop.checkpoints, result.model_dir, chosen))
    return result


class Loop:
    """Trains a job's learner to its last update.

    The gradient of an update is the gradient of the sum over all micro-batches and ranks, divided by the number of targets of
    all of them *after* the backward passes: then no rank has to know the others' counts before it starts, each micro-batch
    needs one forward pass, and one process, two processes and two accumulation steps add up the same numbers.
    """

    def __init__(
        self,
        job: Job,
        run_dir: Path,
        device: torch.device,
        stop: StopRequest,
        *,
        probe: Probe | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.job, self.run_dir, self.device, self.stop = job, run_dir, device, stop
        self.probe, self.judge = probe, judge
        if job.training.parallel == "ddp" or dist.world_size() == 1:
            job.learner.to(device)  # FSDP2 moves each shard itself: the whole need not fit
        self.learner = job.learner.train()
        self.wrapped = parallelize(job.learner, job.training.parallel, device)
        self.optimizer = build_optimizer(job.optim, self.learner)
        follow_languages(self.learner, self.optimizer)
        self.trained: list[Tensor] = [p for p in self.learner.parameters() if p.requires_grad]
        self.watchdog = Watchdog(self.learner.trainable.watches, job.total_updates)
        self.reducer = Reducer(device)
        self.checkpoints = Checkpoints(run_dir, job.training.keep)
        self.log = RunLog(run_dir, job.total_updates, is_main=dist.is_main())
        # Everything below travels with a checkpoint.
        self.step = 0
        self.skipped_in_row = 0
        self.audio_seconds = 0.0
        self.seconds = 0.0
        self.window = Sums()  # since the last logged line
        self.loader_state: dict[str, Any] = {}
        self.loss = math.nan  # of the last logged line
        # The rest does not.
        self.lr = self.grad_norm = math.nan
        self.saved_step = -1
        self.failed_saves = 0
        self.waited = 0.0
        self.window_begin = time.perf_counter()
        self.window_audio = 0.0

    def run(self) -> TrainResult:
        """Train to the end; `PreemptedError` after a signal, `TrainingError` where the run cannot go on."""
        heartbeats = StallWatch(
            self.run_dir / "heartbeats", dist.rank(), dist.world_size(), self.job.training.timeout_seconds
        )
        self.log.start(self.step)
        try:
            with heartbeats as self.stall:
                self._train()
                self.save()
                if self.saved_step != self.step:
                    raise CheckpointError(
                        f"the last checkpoint could not be saved in {self.checkpoints.folder}; make room and resume"
                    )
        finally:
            self.log.stop()
        return TrainResult(self.step, self.loss, self.run_dir, self.run_dir / "model", self.audio_seconds, self.seconds)

    def _train(self) -> None:
        updates = iter(self.job.loader)
        self.window_begin = time.perf_counter()
        try:
            self._compute(updates)
        finally:
            if isinstance(updates, Generator):
                updates.close()  # ends the loader's workers now, not when the interpreter leaves

    def _compute(self, updates: Iterator[Update]) -> None:
        training = self.job.training
        while self.step < self.job.total_updates and not (self.judge is not None and self.judge.enough(self.step)):
            begin = time.perf_counter()
            update = self._next_update(updates)
            requests = self._one_update(update)
            self.seconds += time.perf_counter() - begin
            is_last = self.step == self.job.total_updates
            if self.step % training.log_every == 0 or is_last:
                self._log_window()
            is_judged = is_last and self.judge is not None
            if self.probe is not None and (
                is_judged or (training.probe_every and self.step % training.probe_every == 0)
            ):
                self._run_probe(self.probe)
            code = next((code for code, asked in zip(EXIT_CODES.values(), requests, strict=True) if asked), 0)
            if code and not is_last:
                self._leave(code)
            if self.step % training.checkpoint_every == 0 and not is_last:
                self.save()

    def _next_update(self, updates: Iterator[Update]) -> Update:
        """Fetch this rank's part of the next update; stop together where the ranks do not have the same one."""
        self.stall.beat(self.step, "waiting for data")
        begin = time.perf_counter()
        update = next(updates, None)
        self.waited += time.perf_counter() - begin
        self.stall.beat(self.step, "agreeing on the update")
        mine = (update.number, len(update.micro_batches)) if update is not None else (-1, 0)
        if dist.is_distributed():
            table = torch.zeros(dist.world_size(), 2, dtype=torch.int64, device=self.device)
            table[dist.rank()] = torch.tensor(mine)
            rows = dist.sum_over_ranks(table).tolist()
            if any(row != rows[0] for row in rows):
                parts = ", ".join(f"rank {r}: update {number} of {bins} bins" for r, (number, bins) in enumerate(rows))
                raise TrainingError(
                    f"the ranks disagree on the data after update {self.step} ({parts}; −1 is the end); usually because they were "
                    "started with different corpora or seeds"
                )
        if update is None:
            raise TrainingError(f"the data ended after update {self.step} of {self.job.total_updates}")
        for name, reason in update.rejected:
            self.log.say("warning", self.step, f"left out {name}: {reason}")
        return update

    def _one_update(self, update: Update) -> list[float]:
        """Compute one update and step; return how many ranks were asked to stop, for each signal."""
        job, world = self.job, dist.world_size()
        sums = LossTerms(torch.zeros((), device=self.device), 0)
        totals: list[Tensor] = []
        audio_seconds = 0.0
        for index, batch in enumerate(update.micro_batches):
            self.stall.beat(self.step, f"computing micro-batch {index + 1} of {len(update.micro_batches)}")
            # Bin i of the update has the same dropout whichever rank computes it.
            torch.manual_seed(derive_seed(job.training.seed, "dropout", update.number, index * world + dist.rank()))
            is_last = index + 1 == len(update.micro_batches)
            with without_sync(self.wrapped, is_last):
                with self._autocast():
                    terms: LossTerms = self.wrapped(batch.to(self.device, non_blocking=True))
                terms.total.backward()
            totals.append(terms.total.detach())
            sums += LossTerms(totals[-1], terms.num_targets, terms.metrics)
            audio_seconds += batch.seconds
        gradients = [p.grad for p in self.trained if p.grad is not None]
        raw_norm = dist.full_tensor(torch.nn.utils.get_total_norm(gradients))
        is_bad = ~(torch.isfinite(raw_norm) & torch.isfinite(sums.total))
        asked = [float(self.stop.exit_code == code) for code in EXIT_CODES.values()]
        self.stall.beat(self.step, "adding up over the ranks")
        reduced, (num_bad, *requests) = self.reducer.reduce(sums, audio_seconds, [is_bad, *asked])
        lr = job.optim.lr * learning_rate_scale(job.schedule, self.step, job.total_updates)
        self.step += 1
        self.loader_state = update.state
        self.audio_seconds += reduced.audio_seconds
        self.window_audio += reduced.audio_seconds
        if num_bad or not reduced.num_targets:
            self._skip(update, totals, reduced)
        else:
            self.skipped_in_row = 0
            # DDP and FSDP2 have averaged over the ranks: times `world` is the sum again.
            per_target = world / reduced.num_targets
            self.grad_norm, self.lr = float(raw_norm) * per_target, lr
            scale = per_target
            if job.optim.clip:
                scale *= min(1.0, job.optim.clip / (self.grad_norm + 1e-6))
            torch._foreach_mul_(gradients, scale)
            done = (self.step - 1) / job.total_updates
            set_learning_rate(self.optimizer, lr, encoder_waits=done < job.encoder_from)
            self.optimizer.step()
            self.learner.after_step(self.step / job.total_updates)
            self.window.add(reduced)
            for warning in self.watchdog.observe(self.step, {"loss": reduced.mean_loss, **reduced.means()}):
                self.log.say("warning", self.step, warning)
        self.optimizer.zero_grad(set_to_none=True)
        return requests

    def _skip(self, update: Update, totals: list[Tensor], reduced: Sums) -> None:
        """Leave out an update that some rank cannot finish, naming the utterances; every rank comes here together."""
        bad = [b for b, total in zip(update.micro_batches, totals, strict=True) if not bool(torch.isfinite(total))]
        reason = "no targets" if not reduced.num_targets else "a non-finite loss"
        found: list[Any] = [*dist.gather_objects([name for batch in bad for name in batch.ids])]
        names = [name for part in found for name in part]
        if not names:  # the loss was finite, its gradient was not
            reason = reason if not reduced.num_targets else "a non-finite gradient"
            found = [*dist.gather_objects([name for batch in update.micro_batches for name in batch.ids])]
            names = [name for part in found for name in part]
        self.skipped_in_row += 1
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        message = f"update {self.step} skipped: {reason}; among these utterances: {shown}"
        self.log.write("skip", self.step, reason=reason, utterances=names)
        self.log.say("warning", self.step, message)
        if self.skipped_in_row > MAX_SKIPPED:
            raise TrainingError(
                f"{self.skipped_in_row} updates in a row had {reason}, the last one with {shown}; usually because the learning rate is "
                "too high, or a recording holds NaN or huge samples (`isogloss corpus audit` finds them)"
            )

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.training.precision == "bf16")

    def _log_window(self) -> None:
        now = time.perf_counter()
        elapsed = max(now - self.window_begin, 1e-9)
        if self.window.num_targets:
            self.loss = self.window.mean_loss
            fields: dict[str, Any] = {
                "loss": self.loss,
                "lr": self.lr,
                "grad_norm": self.grad_norm,
                "metrics": self.window.means(),
                "audio_seconds": self.audio_seconds,
                "audio_rate": self.window_audio / elapsed,
                "wait": self.waited / elapsed,
                "elapsed": self.seconds,
            }
            self.log.write("update", self.step, **fields)
            text = f"loss {self.loss:.4g}  lr {self.lr:.2g}  {fields['audio_rate']:.3g} s audio/s  waiting {100 * fields['wait']:.0f} %"
            self.log.progress(self.step, text)
        self.window, self.window_begin, self.window_audio, self.waited = Sums(), now, 0.0, 0.0

    def _run_probe(self, probe: Probe) -> None:
        """Measure the encoder; every rank does, since a sharded encoder needs all of them."""
        self.stall.beat(self.step, "probing", PROBE_ALLOWANCE * self.job.training.timeout_seconds)
        self.learner.eval()
        with torch.no_grad(), unsharded(self.learner):
            results = probe(self.learner.encoder, self.step)
        self.learner.train()
        self.log.write("probe", self.step, results=results)

    def _leave(self, code: int) -> None:
        self.save()
        saved = (
            f"saved update {self.step}" if self.saved_step == self.step else f"update {self.step} could NOT be saved"
        )
        raise PreemptedError(
            f"stopped by a signal; {saved} in {self.checkpoints.folder}; resume with the same command", code
        )

    def save(self) -> None:
        """Commit a checkpoint; a disk that refuses it is warned about, and stops the run at the third time in a row."""
        if self.saved_step == self.step:
            return
        self.stall.beat(self.step, "saving")
        model, moments = gather_tensors(self.learner, self.optimizer, keep=dist.is_main())
        # Every preemption adds a checkpoint: however many there were, the one that may become the model stays.
        best = () if self.judge is None else (self.judge.best(self.step),)

        def commit() -> str | None:
            name = first_non_finite(model) or first_non_finite(moments)
            if name is not None:
                raise TrainingError(
                    f"`{name}` is not finite after update {self.step}, so nothing was saved; lower the learning rate and resume from "
                    "the last checkpoint"
                )
            try:
                self.checkpoints.save(self.step, model, moments, self._state(), spare=best)
            except CheckpointError as error:
                return str(error)
            return None

        problem = on_main(commit)
        self.stall.beat(self.step, "saved")
        if problem is None:
            self.saved_step, self.failed_saves = self.step, 0
            self.log.write("checkpoint", self.step, message=str(self.checkpoints.path(self.step)))
            return
        self.failed_saves += 1
        self.log.say("warning", self.step, f"{problem}; the run goes on and will try again")
        if self.failed_saves >= MAX_FAILED_SAVES:
            raise CheckpointError(f"{self.failed_saves} checkpoints in a row could not be saved: {problem}")

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "loader": self.loader_state,
            "config": self.job.config,
            "manifest": self.job.manifest,
            "plan_multiple": self.job.plan_multiple,
            "world_size": dist.world_size(),
            "threads": torch.get_num_threads(),
            "skipped_in_row": self.skipped_in_row,
            "audio_seconds": self.audio_seconds,
            "seconds": self.seconds,
            "window": self.window.state(),
            "loss": self.loss,
            "watchdog": self.watchdog.state(),
        }

    def load(self, folder: Path) -> None:
        """Continue from a verified checkpoint."""
        state = read_state(folder)
        load_tensors(folder, self.learner, self.optimizer)
        self.job.loader.load_state(state["loader"])
        self.loader_state = state["loader"]
        self.step = self.saved_step = state["step"]
        self.skipped_in_row = state["skipped_in_row"]
        self.audio_seconds, self.seconds = state["audio_seconds"], state["seconds"]
        self.window = Sums.from_state(state["window"])
        self.watchdog.load_state(state["watchdog"])
        self.loss = state["loss"]
