"""Train an encoder that depends on the language: each micro-batch under its own language, and no weight moves unused.

With one language in a step of Adam, the weights of the others would still move by momentum and weight decay. What an update
may move is therefore what some language of it uses, on whichever rank; all else keeps its bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from isogloss.core import dist
from isogloss.core.errors import ConfigError
from isogloss.core.types import SpeechBatch
from isogloss.encoders.language_edits import owned, row_of, select, used_part
from isogloss.training.parallel import Learner


def follow_languages(learner: Learner, optimizer: torch.optim.Optimizer) -> None:
    """Select the language of each micro-batch that the learner sees, and hold still what an update does not use.

    A learner whose encoder is the same for all languages is left alone. A micro-batch of several languages, or of one that the
    encoder does not know, is a `ConfigError`.
    """
    if learner.encoder.edits is None:
        return
    seen = _Seen(learner)
    learner.register_forward_pre_hook(seen.before_forward)
    held: list[tuple[Tensor, Tensor, Tensor]] = []

    def before_step(*_: Any) -> None:
        rows = seen.over_ranks()
        for parameter, is_still in _still_parts(learner, rows):
            local = _local(parameter)
            held.append((local, is_still, local[is_still]))

    def after_step(*_: Any) -> None:
        with torch.no_grad():
            for local, is_still, values in held:
                local[is_still] = values
        held.clear()

    optimizer.register_step_pre_hook(torch.no_grad()(before_step))
    optimizer.register_step_post_hook(after_step)


class _Seen:
    """The languages of the update that is being computed."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._rows: set[int] = set()

    def before_forward(self, _: Any, args: tuple[Any, ...]) -> None:
        batch: SpeechBatch = args[0]
        languages = set(batch.languages)
        if len(languages) != 1:
            named = ", ".join(sorted(map(str, languages)))
            raise ConfigError(
                f"an encoder that depends on the language needs one language in a micro-batch, but one has {named}; set "
                '`data.group_by = "language"`'
            )
        row = row_of(self._learner.encoder, languages.pop())
        # The loop drops the gradients after every update, also after one that it left out: none means a new update.
        if all(parameter.grad is None for parameter, _edit in owned(self._learner.encoder)):
            self._rows.clear()
        self._rows.add(row)
        # Below the learner, not the encoder: a teacher that is a copy of the encoder follows.
        select(self._learner, row)

    def over_ranks(self) -> list[int]:
        """Return the rows that any rank has seen."""
        config = self._learner.encoder.edits
        assert config is not None
        is_seen_L = torch.zeros(len(config.languages), device=next(self._learner.parameters()).device)
        is_seen_L[list(self._rows)] = 1.0
        rows: list[int] = dist.sum_over_ranks(is_seen_L).nonzero().flatten().tolist()
        return rows


def _still_parts(learner: Learner, rows: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Return each parameter that this update may not move everywhere, and where it may not (this rank's part of it)."""
    encoder = learner.encoder
    assert encoder.edits is not None
    protected = [encoder.edits.languages.index(language) for language in encoder.edits.protected]
    found = []
    for parameter, edit in owned(encoder):
        if not parameter.requires_grad:
            continue
        may_move = used_part(parameter, edit, rows)
        if protected:
            may_move = may_move & ~used_part(parameter, edit, protected)
        is_still = _local_part(~may_move, parameter)
        if bool(is_still.any()):
            found.append((parameter, is_still))
    return found


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _local_part(whole: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a tensor of which every rank has the whole."""
    if not isinstance(like, DTensor):
        return whole.to(like.device)
    part = distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return part.to_local()
