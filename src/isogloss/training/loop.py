"""The only loop: plain PyTorch for one process, DDP and FSDP2, for pretraining, adaptation and fine-tuning.

Read `train`, then `run_job`, then `Loop.run` and what it calls, downwards. What each part does by itself has a file: data that
all ranks agree on (feed), sums (averages), updates that are left out (left_out), checkpoints (saver), the log (window).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isogloss.core import dist
from isogloss.core.errors import CheckpointError
from isogloss.core.rng import derive_seed
from isogloss.core.types import LossTerms
from isogloss.data.loader import Update
from isogloss.training.averages import Reducer, Sums
from isogloss.training.by_language import follow_languages
from isogloss.training.checkpoint import Checkpoints, load_tensors, read_state
from isogloss.training.feed import Feed
from isogloss.training.finetune import FinetuneRecipe, build_finetune_job
from isogloss.training.job import Job, build_job
from isogloss.training.left_out import leave_out
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
from isogloss.training.probing import Judge, Probe, check_probed
from isogloss.training.recipe import Recipe
from isogloss.training.run_state import RunState
from isogloss.training.rundir import Resume, prepare_run, run_lock, write_model
from isogloss.training.saver import Saver
from isogloss.training.schedule import learning_rate_scale
from isogloss.training.stall import StallWatch
from isogloss.training.watchdog import Watchdog
from isogloss.training.window import Window

__all__ = ["Judge", "Loop", "Probe", "TrainResult", "run_job", "train"]

PROBE_ALLOWANCE = 10  # a probe may take so many times longer than an update before it counts as a stall


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
    check_probed(recipe.training.probe_every, has_probe=probe is not None)
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
            on_main(lambda: write_model(job, loop.saver.checkpoints, result.model_dir, chosen))
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
        self.reducer = Reducer(device)
        self.log = RunLog(run_dir, job.total_updates, is_main=dist.is_main())
        self.stall = StallWatch(run_dir / "heartbeats", dist.rank(), dist.world_size(), job.training.timeout_seconds)
        self.feed = Feed(job.loader, job.total_updates, device, self.stall, self.log)
        self.window = Window(self.log, self.feed)
        self.saver = Saver(Checkpoints(run_dir, job.training.keep), self.stall, self.log)
        # These two travel with a checkpoint, as learner and optimizer do; nothing else of the loop does.
        self.now = RunState()
        self.watchdog = Watchdog(self.learner.trainable.watches, job.total_updates)
        self.lr = self.grad_norm = math.nan  # of the last update

    def run(self) -> TrainResult:
        """Train to the end; `PreemptedError` after a signal, `TrainingError` where the run cannot go on."""
        self.log.start(self.now.step)
        try:
            with self.stall:
                with self.feed:
                    self._train()
                self.save()
                if self.saver.saved_step != self.now.step:
                    raise CheckpointError(
                        f"the last checkpoint could not be saved in {self.saver.folder}; make room and resume"
                    )
        finally:
            self.log.stop()
        now = self.now
        return TrainResult(now.step, now.loss, self.run_dir, self.run_dir / "model", now.audio_seconds, now.seconds)

    def _train(self) -> None:
        """Go through the updates; after each one log, look, leave and save as is due."""
        now, training, total = self.now, self.job.training, self.job.total_updates
        self.window.open(now)
        while now.step < total and not (self.judge is not None and self.judge.enough(now.step)):
            begin = time.perf_counter()
            update = self.feed.after(now.step)
            code = self._one_update(update)
            now.seconds += time.perf_counter() - begin
            is_last = now.step == total
            if now.step % training.log_every == 0 or is_last:
                self.window.close(now, lr=self.lr, grad_norm=self.grad_norm)
            if self.probe is not None and self._is_probed(is_last):
                self._look(self.probe)
            if code and not is_last:
                self._leave(code)
            if now.step % training.checkpoint_every == 0 and not is_last:
                self.save()

    def _one_update(self, update: Update) -> int:
        """Compute one update and step; return the exit code that a signal to any rank asks for, 0 where there was none."""
        now, job, world = self.now, self.job, dist.world_size()
        terms, losses, audio_seconds = self._add_gradients(update)
        gradients = [p.grad for p in self.trained if p.grad is not None]
        raw_norm = dist.full_tensor(torch.nn.utils.get_total_norm(gradients))
        is_bad = ~(torch.isfinite(raw_norm) & torch.isfinite(terms.total))
        asked = [float(self.stop.exit_code == code) for code in EXIT_CODES.values()]
        self.stall.beat(now.step, "adding up over the ranks")
        sums, (num_bad, *num_asked) = self.reducer.reduce(terms, audio_seconds, [is_bad, *asked])
        lr = job.optim.lr * learning_rate_scale(job.schedule, now.step, job.total_updates)
        now.step += 1
        now.loader = update.state
        now.audio_seconds += sums.audio_seconds
        if num_bad or not sums.num_targets:
            now.skipped_in_row += 1
            self.learner.forget_update()
            has_targets = bool(sums.num_targets)
            leave_out(update, losses, has_targets=has_targets, step=now.step, in_row=now.skipped_in_row, log=self.log)
        else:
            now.skipped_in_row = 0
            # DDP and FSDP2 have averaged over the ranks: times `world` is the sum again.
            self._step(gradients, raw_norm, per_target=world / sums.num_targets, lr=lr)
            now.window.add(sums)
            self._watch(sums)
        self.optimizer.zero_grad(set_to_none=True)
        return next((code for code, num in zip(EXIT_CODES.values(), num_asked, strict=True) if num), 0)

    def _add_gradients(self, update: Update) -> tuple[LossTerms, list[Tensor], float]:
        """Go forward and back through this rank's micro-batches; return their sum, each one's loss, and the seconds of audio."""
        sums = LossTerms(torch.zeros((), device=self.device), 0)
        losses: list[Tensor] = []
        audio_seconds = 0.0
        bf16 = self.job.training.precision == "bf16"
        for index, batch in enumerate(update.micro_batches):
            self.stall.beat(self.now.step, f"computing micro-batch {index + 1} of {len(update.micro_batches)}")
            # Bin i of the update has the same dropout whichever rank computes it.
            number = index * dist.world_size() + dist.rank()
            torch.manual_seed(derive_seed(self.job.training.seed, "dropout", update.number, number))
            with without_sync(self.wrapped, is_last=index + 1 == len(update.micro_batches)):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                    terms: LossTerms = self.wrapped(batch.to(self.device, non_blocking=True))
                terms.total.backward()
            losses.append(terms.total.detach())
            sums += LossTerms(losses[-1], terms.num_targets, terms.metrics)
            audio_seconds += batch.seconds
        return sums, losses, audio_seconds

    def _step(self, gradients: list[Tensor], raw_norm: Tensor, *, per_target: float, lr: float) -> None:
        """Divide and clip the gradient, step, and let teachers and temperatures follow."""
        job = self.job
        self.grad_norm, self.lr = float(raw_norm) * per_target, lr
        scale = per_target
        if job.optim.clip:
            scale *= min(1.0, job.optim.clip / (self.grad_norm + 1e-6))
        torch._foreach_mul_(gradients, scale)
        done = (self.now.step - 1) / job.total_updates
        set_learning_rate(self.optimizer, lr, encoder_waits=done < job.encoder_from)
        self.optimizer.step()
        self.learner.after_step(self.now.step / job.total_updates)

    def _watch(self, sums: Sums) -> None:
        for warning in self.watchdog.observe(self.now.step, {"loss": sums.mean_loss, **sums.means()}):
            self.log.say("warning", self.now.step, warning)

    def _is_probed(self, is_last: bool) -> bool:
        every = self.job.training.probe_every
        return (is_last and self.judge is not None) or (every is not None and self.now.step % every == 0)

    def _look(self, probe: Probe) -> None:
        """Measure the encoder; every rank does, since a sharded encoder needs all of them."""
        self.stall.beat(self.now.step, "probing", PROBE_ALLOWANCE * self.job.training.timeout_seconds)
        self.learner.eval()
        with torch.no_grad(), unsharded(self.learner):
            results = probe(self.learner.encoder, self.now.step)
        self.learner.train()
        self.log.write("probe", self.now.step, results=results)

    def _leave(self, code: int) -> None:
        self.save(leaves=True)
        step = self.now.step
        saved = f"saved update {step}" if self.saver.saved_step == step else f"update {step} could NOT be saved"
        raise PreemptedError(f"stopped by a signal; {saved} in {self.saver.folder}; resume with the same command", code)

    def save(self, *, leaves: bool = False) -> None:
        """Commit a checkpoint of where the run is; a run that leaves computes what could not be saved again when it resumes."""
        state: dict[str, Any] = {
            **self.now.tree(),
            "config": self.job.config,
            "manifest": self.job.manifest,
            "total_updates": self.job.total_updates,
            "plan_multiple": self.job.plan_multiple,
            "world_size": dist.world_size(),
            "threads": torch.get_num_threads(),
            "watchdog": self.watchdog.state(),
        }
        # Every preemption adds a checkpoint: however many there were, the one that may become the model stays.
        best = () if self.judge is None else (self.judge.best(self.now.step),)
        is_needed = self.now.step in best and not leaves
        self.saver.save(self.now.step, self.learner, self.optimizer, state, spare=best, is_needed=is_needed)

    def load(self, folder: Path) -> None:
        """Continue from a verified checkpoint."""
        state = read_state(folder)
        load_tensors(folder, self.learner, self.optimizer)
        self.job.loader.load_state(state["loader"])
        self.now = RunState.of_tree(state)
        self.watchdog.load_state(state["watchdog"])
        self.saver.saved_step = self.now.step
