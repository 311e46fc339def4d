"""The small parts of training: schedules, watchdog, averages, signals, optimizer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from isogloss.core.config import parse
from isogloss.core.errors import ConfigError, TrainingError
from isogloss.core.types import LossTerms
from isogloss.objectives.base import Watch
from isogloss.training.averages import Reducer, Sums
from isogloss.training.optim import OptimConfig, build_optimizer
from isogloss.training.schedule import ScheduleConfig, learning_rate_scale
from isogloss.training.stall import StallWatch
from isogloss.training.watchdog import Watchdog


def scales(total: int = 100, **options: object) -> list[float]:
    schedule = parse(ScheduleConfig, options, "test")
    return [learning_rate_scale(schedule, step, total) for step in range(total)]


def test_schedules_have_their_shapes() -> None:
    linear = scales(warmup=0.1)
    assert linear[0] == 0.1
    assert linear[9] == 1.0
    assert linear[55] == pytest.approx(0.5)
    assert linear[-1] == pytest.approx(1 / 90)
    assert scales(shape="cosine", warmup=0.0, final_scale=0.1)[50] == pytest.approx(0.55)
    assert scales(shape="cosine", warmup=0.0, final_scale=0.1)[-1] == pytest.approx(0.1, abs=1e-3)
    assert set(scales(shape="constant", warmup=0.0)) == {1.0}
    tri = scales(shape="tri-stage", warmup=0.1, hold=0.4, final_scale=0.05)
    assert tri[9:51] == [1.0] * 42
    assert tri[75] == pytest.approx(math.sqrt(0.05))  # half way down an exponential
    assert tri[-1] == pytest.approx(0.05 ** (49 / 50))
    # the shape does not depend on the length of the run
    assert scales(1000, warmup=0.1)[550] == pytest.approx(linear[55], abs=1e-2)


@pytest.mark.parametrize(("shape", "reference"), [("linear", "linear"), ("cosine", "cosine")])
def test_schedules_fall_as_those_of_transformers(shape: str, reference: str) -> None:
    from transformers import get_scheduler

    total, warmup = 40, 8
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(reference, optimizer, warmup, total)
    expected = []
    for _ in range(total):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert scales(total, shape=shape, warmup=warmup / total)[warmup:] == pytest.approx(expected[warmup:])


@pytest.mark.parametrize("total", [1, 2, 5, 30])
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_no_update_is_computed_at_a_rate_of_zero(shape: str, total: int) -> None:
    found = scales(total, shape=shape, warmup=0.1)
    assert min(found) > 0
    assert max(found) == 1.0


def test_schedules_refuse_what_cannot_be() -> None:
    for options in ({"warmup": 0.6, "hold": 0.6, "shape": "tri-stage"}, {"hold": 0.1}, {"shape": "tri-stage"}):
        with pytest.raises(ConfigError):
            scales(**options)


def test_the_watchdog_warns_once_then_stops_and_its_counts_travel() -> None:
    watch = Watch("perplexity", low=5.0, high=90.0, patience=3, grace=2, meaning="collapsed", advice="raise it")
    dog, told = Watchdog([watch]), []
    for step in range(1, 5):
        told += dog.observe(step, {"perplexity": 1.0})
    assert told == []
    other = Watchdog([watch])
    other.load_state(dog.state())
    (warning,) = other.observe(5, {"perplexity": 99.0})
    assert "must be above 5 and below 90" in warning
    assert other.observe(6, {}) == []
    assert other.observe(7, {"perplexity": float("nan")}) == []
    assert other.observe(8, {"perplexity": 1.0}) == []
    with pytest.raises(TrainingError, match=r"stopped at update 9.*collapsed; raise it"):
        other.observe(9, {"perplexity": 1.0})
    healthy = Watchdog([watch])
    assert not [w for step in range(100) for w in healthy.observe(step, {"perplexity": 1.0 if step % 3 else 50.0})]


def test_a_short_run_is_warned_sooner_and_not_stopped_sooner() -> None:
    watch = Watch("perplexity", low=5.0, patience=200, grace=100)
    for total, warned in ((None, 300), (400_000, 300), (2000, 200), (400, 120), (10, 120)):
        dog, told = Watchdog([watch], total), []
        for step in range(1, 500):
            told += dog.observe(step, {"perplexity": 1.0})
        with pytest.raises(TrainingError, match="stopped at update 500:"):
            dog.observe(500, {"perplexity": 1.0})
        assert [warning.split(":")[0] for warning in told] == [f"update {warned}"]
    assert Watch("perplexity", patience=3).patience_in(400) == 3


def test_averages_add_sums_not_means_and_survive_json() -> None:
    import json

    reducer, window = Reducer(torch.device("cpu")), Sums()
    for total, count in ((6.0, 3), (4.0, 1)):
        sums, flags = reducer.reduce(LossTerms(torch.tensor(total), count, {"m": (total / 2, count)}), 1.5, [1.0, 0.0])
        assert flags == [1.0, 0.0]
        window.add(sums)
    assert (window.mean_loss, window.means(), window.audio_seconds) == (2.5, {"m": 1.25}, 3.0)
    assert Sums.from_state(json.loads(json.dumps(window.state()))) == window


def test_norms_and_biases_may_be_spared_the_decay() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    (group,) = build_optimizer(OptimConfig(), module).param_groups
    assert len(group["params"]) == 4
    spared = build_optimizer(OptimConfig(decay_all=False), module).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in spared] == [(1, 0.01), (3, 0.0)]
    with pytest.raises(ConfigError, match="nothing is left to train"):
        build_optimizer(OptimConfig(), module.requires_grad_(False))


def stalls_after(sleeps: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the watch sleep for these times, without a beat; return how long the silences were that it would end the run for."""
    clock, ends = [1000.0], []
    monkeypatch.setattr("isogloss.training.stall.time.monotonic", lambda: clock[0])
    watch = StallWatch(tmp_path, 0, 1, timeout_seconds=50.0)

    class Slept:
        def wait(self, period: float) -> bool:
            assert period == 5.0
            if sleeps:
                clock[0] += sleeps.pop(0)
            return not sleeps

    monkeypatch.setattr(watch, "_done", Slept())
    monkeypatch.setattr(watch, "_end", ends.append)
    watch._watch()
    return ends


def test_a_silent_run_is_ended_and_a_suspended_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stalls_after([5.0] * 12, tmp_path, monkeypatch) == [55.0]
    # suspended for ten minutes (a scheduler's SIGSTOP, a laptop's sleep): the watch stood still as well
    assert stalls_after([5.0, 605.0, 5.0, 5.0], tmp_path, monkeypatch) == []
    # which does not excuse what comes after it
    assert stalls_after([605.0, *[5.0] * 11], tmp_path, monkeypatch) == [55.0]
