"""Intervals: bootstrap over speakers where they are known, else over utterances; paired differences; Holm's correction.

Every metric here is a function of counts that add up over test items (errors and reference tokens, hits per class, …), so a
resample is one product of weights with counts and no statistic is ever recomputed item by item. Metrics that need the
items themselves (EER) take the weights instead: see `bootstrap_weighted`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed

Array = npt.NDArray[np.float64]
Statistic = Callable[[Array], Array]  # summed counts R×K → values R

MIN_CLUSTERS = 5
_CHUNK = 4_000_000  # weights held at once


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval: every number that isogloss reports.

    `unit` and `num_units` say what was resampled; `caveat` says in words what the interval does not cover. Without an
    interval (one unit only) `low`, `high` and `sd` are NaN.
    """

    value: float
    low: float
    high: float
    sd: float
    method: str
    num_units: int
    level: float = 0.95
    unit: str = "utterance"
    caveat: str = ""

    def __str__(self) -> str:
        return self.format()

    def format(self, *, scale: float = 1.0, digits: int | None = None) -> str:
        """Return "12.3 [11.0, 13.7]"; `scale=100` for percent. Digits follow the interval's width unless given (percent: at least one)."""
        value, low, high = (scale * x for x in (self.value, self.low, self.high))
        if digits is None:
            digits = _digits(low, high) if high > low else 1 if scale >= 10 else 3
            digits = max(digits, 1) if scale >= 10 else digits
        if math.isnan(low):
            return f"{value:.{digits}f} [no interval]"
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    def is_clear_of(self, reference: float = 0.0) -> bool:
        """True if the interval exists and does not hold `reference`."""
        return self.low > reference or self.high < reference


def _digits(low: float, high: float) -> int:
    """Two significant digits of the interval's width: more would be noise, fewer would hide it."""
    return min(max(1 - math.floor(math.log10(high - low)), 0), 6)


def bootstrap(
    counts_IK: Any,
    statistic: Statistic,
    *,
    clusters: Sequence[str | None] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    cluster_name: str = "speaker",
) -> Estimate:
    """Estimate `statistic` of the column sums of I items' counts, resampling whole clusters (percentile bootstrap).

    `statistic` maps R×K sums to R values. The percentiles are widened for few clusters (Hesterberg, arXiv 1411.5279, §5.1).
    With fewer than five clusters, or where some are unknown (None), utterances are resampled and the caveat says so.
    """
    counts_IK = _as_counts(counts_IK)
    groups = _groups(len(counts_IK), clusters, cluster_name)
    sums_UK = groups.sum(counts_IK)
    value = float(statistic(counts_IK.sum(0, keepdims=True))[0])
    values_R = np.concatenate(
        [statistic(weights_RU @ sums_UK) for weights_RU in _weights(groups.num_units, resamples, seed)]
    )
    return _percentile(value, values_R, groups, level)


def ratio_of_sums(
    numerators_I: Any,
    denominators_I: Any,
    *,
    clusters: Sequence[str | None] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Estimate Σ numerators / Σ denominators: error rates, accuracies, means (denominators of one)."""
    counts_I2 = np.stack([np.asarray(numerators_I, float), np.asarray(denominators_I, float)], axis=1)
    return bootstrap(counts_I2, _ratio, clusters=clusters, resamples=resamples, level=level, seed=seed)


def paired_difference(
    counts_a_IK: Any,
    counts_b_IK: Any,
    statistic: Statistic,
    *,
    clusters: Sequence[str | None] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Estimate statistic(a) − statistic(b) of two systems on the same items: both see the same resamples."""
    counts_a_IK, counts_b_IK = _as_counts(counts_a_IK), _as_counts(counts_b_IK)
    if counts_a_IK.shape != counts_b_IK.shape:
        raise DataError(
            f"a paired difference needs the same items for both systems, but they have {counts_a_IK.shape} and "
            f"{counts_b_IK.shape} counts; score both on the same test set, in the same order"
        )
    width = counts_a_IK.shape[1]

    def difference(sums: Array) -> Array:
        return statistic(sums[:, :width]) - statistic(sums[:, width:])

    both = np.concatenate([counts_a_IK, counts_b_IK], axis=1)
    return bootstrap(both, difference, clusters=clusters, resamples=resamples, level=level, seed=seed)


def bootstrap_weighted(
    statistic: Callable[[Array], Array],
    num_items: int,
    *,
    clusters: Sequence[str | None] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    recentre: bool = False,
) -> Estimate:
    """Estimate a statistic that maps weights of the items (R×I) to values (R), such as the equal error rate.

    Resamples without a value (NaN: no positive trial was drawn) are left out and told in the caveat. `recentre` moves the
    replicates so that their mean is the value itself, for statistics that repeated items bias.
    """
    groups = _groups(num_items, clusters, "speaker")
    value = float(statistic(np.ones((1, num_items)))[0])
    values_R = np.concatenate(
        [
            statistic(weights_RU[:, groups.unit_I])
            for weights_RU in _weights(groups.num_units, resamples, seed, row_size=num_items)
        ]
    )
    if recentre:
        values_R = values_R - np.nanmean(values_R) + value
    return _percentile(value, values_R, groups, level)


def hierarchical(
    counts_PSIK: Any,
    statistic: Statistic,
    *,
    clusters: Sequence[str | None] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Estimate the mean of a statistic over training draws P and seeds S: draws, then seeds, then speakers are resampled.

    `counts_PSIK` holds the counts of the model of draw p and seed s on test item i. All models are scored on the same
    items, so one set of resampled speakers serves them all: drawing speakers anew for each model would average their
    variance away.
    """
    counts_PSIK = np.asarray(counts_PSIK, float)
    if counts_PSIK.ndim != 4:
        raise DataError(f"`counts_PSIK` must be draws×seeds×items×counts, but has the shape {counts_PSIK.shape}")
    num_draws, num_seeds, num_items, width = counts_PSIK.shape
    models_MIK = counts_PSIK.reshape(-1, num_items, width)
    groups = _groups(num_items, clusters, "speaker")
    sums_UMK = groups.sum(models_MIK.swapaxes(0, 1))
    value = float(statistic(models_MIK.sum(1)).mean())
    rng = np.random.default_rng(derive_seed("models", seed))
    values = []
    for weights_RU in _weights(groups.num_units, resamples, seed):
        sums_RMK = np.tensordot(weights_RU, sums_UMK, axes=1)
        per_model_RM = statistic(sums_RMK.reshape(-1, width)).reshape(len(weights_RU), -1)
        draw_RP1 = rng.integers(num_draws, size=(len(weights_RU), num_draws, 1))
        seed_RPS = rng.integers(num_seeds, size=(len(weights_RU), num_draws, num_seeds))
        chosen_RM = (draw_RP1 * num_seeds + seed_RPS).reshape(len(weights_RU), -1)
        values.append(np.take_along_axis(per_model_RM, chosen_RM, axis=1).mean(1))
    estimate = _percentile(value, np.concatenate(values), groups, level)
    method = f"hierarchical bootstrap over {num_draws} draws, {num_seeds} seeds, {groups.num_units} {groups.unit}s"
    few = f"only {num_draws} draws and {num_seeds} seeds" if num_draws * num_seeds < MIN_CLUSTERS else ""
    return Estimate(**{**vars(estimate), "method": method, "caveat": "; ".join(c for c in (estimate.caveat, few) if c)})


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the order given (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = running
    return adjusted


def spread(*estimates: Estimate) -> tuple[float, float]:
    """Return the standard error of the sum (or difference) of independent estimates, and its degrees of freedom.

    The deviation of n resampled units is too small by √((n−1)/n), and has n − 1 degrees (Hesterberg, arXiv 1411.5279, §5.1);
    several are added as Welch and Satterthwaite do. NaN where an estimate has no interval.
    """
    if any(estimate.num_units < 2 for estimate in estimates):
        return math.nan, math.nan
    variances = [estimate.sd**2 * estimate.num_units / (estimate.num_units - 1) for estimate in estimates]
    total = sum(variances)
    below = sum(own**2 / (estimate.num_units - 1) for own, estimate in zip(variances, estimates, strict=True))
    if not below > 0:
        return math.sqrt(total), float(min(estimate.num_units for estimate in estimates) - 1)
    return math.sqrt(total), total**2 / below


def two_sided_p(estimate: Estimate) -> float:
    """Return a p-value of `estimate` being zero by Student's t (`spread`), for Holm's correction over languages.

    Where n units all say the same there is no spread to compare with: then it is that of n equal signs, 2^(1−n).
    """
    from scipy.special import stdtr

    error, degrees = spread(estimate)
    if not error > 0:
        return 1.0 if estimate.value == 0 or math.isnan(error) else 2.0 ** (1 - estimate.num_units)
    return 2.0 * float(stdtr(degrees, -abs(estimate.value) / error))


def half_width(*estimates: Estimate, level: float = 0.95) -> float:
    """Return half of the interval of the sum or difference of independent estimates, by Student's t (`spread`)."""
    from scipy.special import stdtrit

    error, degrees = spread(*estimates)
    return error * float(stdtrit(degrees, (1 + level) / 2))


def widened(draws_R: Array, num_units: int) -> Array:
    """Return resamples of n units about their mean, wider by √(n/(n−1)) (`spread`): for what is made of several estimates' resamples."""
    if num_units < 2:
        return np.asarray(draws_R, dtype=float)
    mean = float(np.nanmean(draws_R))
    return np.asarray(mean + math.sqrt(num_units / (num_units - 1)) * (draws_R - mean))


def from_replicates(
    value: float,
    replicates_R: Array,
    *,
    num_units: int,
    unit: str,
    level: float = 0.95,
    caveat: str = "",
    degrees: float | None = None,
) -> Estimate:
    """Make an estimate of bootstrap replicates that were drawn elsewhere over `num_units` units.

    With `degrees` they are `widened` already: their percentiles are those of Student's t of so many degrees of freedom.
    """
    return _percentile(value, replicates_R, _Groups(np.arange(num_units), num_units, unit, caveat), level, degrees)


def resample_weights(num_units: int, resamples: int, seed: int) -> Array:
    """Return R×U multinomial weights: how often each unit is drawn in each resample; a function of the arguments."""
    return np.concatenate(list(_weights(num_units, resamples, seed)))


def from_jackknife(
    value: float, leave_out_G: Array, *, num_units: int, unit: str, level: float = 0.95, caveat: str = ""
) -> Estimate:
    """Make an estimate of G values, each without one of G equal groups of units (delete-a-group jackknife)."""
    from scipy.special import stdtrit

    kept = leave_out_G[np.isfinite(leave_out_G)]
    size = len(kept)
    if size < 2:
        return Estimate(value, math.nan, math.nan, math.nan, "none", num_units, level, unit, caveat or "one unit only")
    sd = math.sqrt((size - 1) / size * float(((kept - kept.mean()) ** 2).sum()))
    half = float(stdtrit(size - 1, (1 + level) / 2)) * sd
    method = f"jackknife over {size} groups of {num_units} {unit}s"
    return Estimate(value, value - half, value + half, sd, method, num_units, level, unit, caveat)


def over_pairs(
    values_LL: Array, mean: Callable[[Array], float], *, unit: str = "language", level: float = 0.95, caveat: str = ""
) -> Estimate:
    """Estimate a mean of a square table by a jackknife that leaves out one unit at a time, its row and its column.

    Pairs share units, and of few units a bootstrap draws too few pairs to tell how much they differ.
    """
    count = len(values_LL)
    without_L = [mean(np.delete(np.delete(values_LL, i, 0), i, 1)) for i in range(count)]
    few = f"only {count} {unit}s" if count < 10 else ""
    caveat = "; ".join(part for part in (few, caveat) if part)
    return from_jackknife(mean(values_LL), np.array(without_L), num_units=count, unit=unit, level=level, caveat=caveat)


def off_diagonal(values_LL: Array) -> float:
    """Return the mean over pairs of two, NaN where there is none."""
    off_LL = ~np.eye(len(values_LL), dtype=bool)
    return float(values_LL[off_LL].mean()) if off_LL.any() else math.nan


@dataclass(frozen=True)
class _Groups:
    unit_I: npt.NDArray[np.int64]
    num_units: int
    unit: str
    caveat: str

    def sum(self, values: Array) -> Array:
        total = np.zeros((self.num_units, *values.shape[1:]))
        np.add.at(total, self.unit_I, values)
        return total


def _groups(num_items: int, clusters: Sequence[str | None] | None, name: str) -> _Groups:
    if num_items == 0:
        raise DataError("there is nothing to score: the test set has no items")
    if clusters is None:
        return _Groups(np.arange(num_items), num_items, "utterance", "")
    if len(clusters) != num_items:
        raise DataError(f"`clusters` must name the {name} of each of {num_items} items, but has {len(clusters)}")
    unknown = sum(c is None for c in clusters)
    if unknown:
        caveat = f"the {name} of {unknown} of {num_items} utterances is unknown: utterances were resampled"
        return _Groups(np.arange(num_items), num_items, "utterance", caveat)
    names, unit_I = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if len(names) < MIN_CLUSTERS:
        people = f"{len(names)} {name}{'s' if len(names) > 1 else ''}"
        caveat = f"only {people}: utterances were resampled, differences between {name}s are not covered"
        return _Groups(np.arange(num_items), num_items, "utterance", caveat)
    return _Groups(unit_I.reshape(-1), len(names), name, "")


def _weights(num_units: int, resamples: int, seed: int, row_size: int | None = None) -> Iterator[Array]:
    """Yield R×U weights in chunks; the numbers do not depend on the chunk size."""
    rng = np.random.Generator(np.random.PCG64(derive_seed("bootstrap", seed)))
    rows = max(1, _CHUNK // max(row_size or num_units, 1))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(num_units, size=(size, num_units)) + np.arange(size)[:, None] * num_units
        yield np.bincount(drawn.ravel(), minlength=size * num_units).reshape(size, num_units).astype(float)


def _percentile(value: float, values_R: Array, groups: _Groups, level: float, degrees: float | None = None) -> Estimate:
    from scipy.special import ndtr, stdtrit

    if not 0 < level < 1:
        raise DataError(f"`level` must be between 0 and 1, but is {level}")
    caveat = groups.caveat
    finite = values_R[np.isfinite(values_R)]
    if len(finite) < len(values_R):
        lost = f"{len(values_R) - len(finite)} of {len(values_R)} resamples had no value and were left out"
        caveat = "; ".join(c for c in (caveat, lost) if c)
    n = groups.num_units
    if n < 2 or len(finite) < 2:
        nan = math.nan
        return Estimate(
            value, nan, nan, nan, "none", n, level, groups.unit, caveat or f"one {groups.unit}: no interval"
        )
    # The plain percentile interval of n units is too narrow by √(n/(n−1)) and by normal for Student quantiles.
    wider, degrees = (math.sqrt(n / (n - 1)), n - 1) if degrees is None else (1.0, degrees)
    tail = float(ndtr(wider * stdtrit(degrees, (1 - level) / 2)))
    low, high = np.quantile(finite, [tail, 1 - tail])
    method = f"bootstrap over {n} {groups.unit}s, {len(finite)} resamples"
    return Estimate(value, float(low), float(high), float(finite.std(ddof=1)), method, n, level, groups.unit, caveat)


def _ratio(sums_R2: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums_R2[:, 0] / sums_R2[:, 1])


def _as_counts(counts: Any) -> Array:
    array = np.asarray(counts, dtype=float)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise DataError(f"counts must be items×counts, but have the shape {array.shape}")
    return array
