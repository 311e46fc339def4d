"""ABX of several feature sets on the same tokens, as records: each error, and each difference to the first set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from isogloss.core.errors import DataError
from isogloss.evaluation.abx import Context, Speaker, abx, common_items, items_from_cuts, paired_difference
from isogloss.evaluation.features import FeatureSource
from isogloss.evaluation.labels import alignment_kind
from isogloss.evaluation.tables import ResultRecord

Tell = Callable[[str, int, int], None]


def measure_abx(
    sources: Sequence[FeatureSource],
    cuts: Sequence[Any],
    *,
    dataset: str,
    speakers: Sequence[Speaker] = ("within", "across"),
    contexts: Sequence[Context] = ("triphone",),
    max_tokens: int | None = 10,
    max_x_speakers: int | None = 5,
    drop_last: bool = False,
    seed: int = 0,
    resamples: int = 2000,
    notes: str = "",
    tell: Tell | None = None,
) -> tuple[list[ResultRecord], list[str]]:
    """Return the records of every source and layer, paired differences to the first one, and what could not be measured.

    Cuts need phone alignments. Phones of different languages are different phones. Tokens that hold no frame in one of the
    sources are left out for all, so that all are scored on the same tokens.
    """
    languages = {cut.id: next((s.language for s in cut.supervisions if s.language), None) for cut in cuts}
    is_multilingual = len(set(languages.values())) > 1
    items = items_from_cuts(cuts)
    if is_multilingual:
        items = [item._replace(phone=f"{languages[item.id]}:{item.phone}") for item in items]
    if not items:
        raise DataError(f"none of {len(cuts)} cuts has a phone alignment; put a `phones.ctm` beside the metadata")
    named: list[tuple[str, int, FeatureSource, Mapping[str, npt.NDArray[Any]]]] = []
    for source in sources:
        by_cut = {cut.id: source.features(cut) for cut in cuts}
        for layer in source.layers:
            name = source.name if len(source.layers) == 1 else f"{source.name} layer {layer}"
            named.append((name, layer, source, {key: values[layer] for key, values in by_cut.items()}))
    items = common_items(items, [(f, s.frame_rate_hz, s.first_center_seconds) for _, _, s, f in named])
    labels = alignment_kind(cuts)
    is_synthetic = any((cut.custom or {}).get("synthetic") for cut in cuts)
    records: list[ResultRecord] = []
    problems: list[str] = []
    done = 0
    for context in contexts:
        for speaker in speakers:
            results = []
            try:
                for name, layer, source, features in named:
                    if tell is not None:
                        tell("ABX", done, len(named) * len(contexts) * len(speakers))
                    result = abx(
                        items,
                        features,
                        frame_rate_hz=source.frame_rate_hz,
                        first_center_seconds=source.first_center_seconds,
                        speaker=speaker,
                        context=context,
                        max_tokens=max_tokens,
                        max_x_speakers=max_x_speakers,
                        drop_last=drop_last,
                        seed=seed,
                        resamples=resamples,
                    )
                    results.append((name, layer, result))
                    done += 1
            except DataError as error:
                problems.append(f"{speaker} speaker, context {context}: {error}")
                continue
            first_name, first_layer, first = results[0]
            estimates = [(name, layer, result, result.error) for name, layer, result in results]
            estimates += [
                (f"{first_name} − {name}", first_layer, result, paired_difference(first, result))
                for name, _, result in results[1:]
            ]
            for name, layer, result, estimate in estimates:
                meta = {
                    "layer": layer,
                    "tokens": result.num_items,
                    "cells": result.num_cells,
                    "skipped": result.num_skipped,
                    "capped": result.num_capped,
                    "max_tokens": max_tokens,
                    "max_x_speakers": max_x_speakers,
                    "drop_last": drop_last,
                }
                records.append(
                    ResultRecord.from_estimate(
                        estimate,
                        system=name,
                        task=f"ABX {speaker} speaker, {context}",
                        dataset=dataset,
                        metric="abx_error",
                        higher_is_better=False,
                        labels=labels,
                        synthetic_speech=is_synthetic,
                        seeds=(seed,),
                        notes=notes,
                        meta=meta,
                    )
                )
    if not records:
        raise DataError("; ".join(problems))
    return records, problems
