"""A teacher that is the student's running average: the targets of data2vec, data2vec 2.0, DinoSR and SpidR."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from isogloss.core.dist import copy_into, full_tensor

Student = TypeVar("Student", bound=nn.Module)


class EmaTeacher(nn.Module, Generic[Student]):
    """A copy of a student whose weights follow θ' ← τ θ' + (1−τ) θ after each update (arXiv 2202.03555, eq. 1).

    `is_averaged(name)` says of each of the student's parameters whether it is averaged; all other tensors are copied (τ = 0).
    Buffers always are: the stored statistics of a batch norm are a running mean already, and a second one on top would trail
    behind by 1/(1−τ) updates. `start` gives the averaged tensors their first values, if they are not to begin as the student's.

    The weights are fp32 **buffers**, not parameters: no optimizer, no DDP and no gradient knows them, and a checkpoint holds
    them with the objective. `model` is always in eval mode (no dropout, no layer drop).

    Under FSDP2 the student is sharded and the teacher is not: each rank holds all of it (4 bytes a weight), and `follow` gathers
    one tensor of the student at a time. That is one more exchange of the weights in an *update*; a sharded teacher
    would have to be gathered in every *micro-batch*. All ranks then average the same numbers, so a teacher is the same bits on
    every rank, and the same however many ranks there are; batch norms too, whose stored statistics the ranks move together
    (`nn/batch_norm.py`).
    """

    def __init__(self, student: Student, is_averaged: Callable[[str], bool], start: Student | None = None) -> None:
        super().__init__()
        self.model = copy.deepcopy(student)
        self._averaged = frozenset(
            name
            for name, parameter in student.named_parameters(remove_duplicate=False)
            if parameter.is_floating_point() and is_averaged(name)
        )
        _to_buffers(self.model)
        self.model.eval()
        if start is not None:
            self._move(start.state_dict(), self._averaged, 0.0)

    @property
    def averaged(self) -> frozenset[str]:
        """The names of the tensors that are averaged."""
        return self._averaged

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever the objective is in."""
        self.training = mode
        return self

    @torch.no_grad()
    def follow(self, student: Student, decay: float) -> None:
        """Average the student in with τ = `decay`, and copy what is not averaged; every rank must call it, after the optimizer's step."""
        tensors = student.state_dict()
        self._move(tensors, self._averaged, decay)
        self._move(tensors, tensors.keys() - self._averaged, 0.0)

    @torch.no_grad()
    def hold(self, student: Student, names: Sequence[str]) -> None:
        """Set these tensors of the student, sharded or not, to the teacher's: they then stay what they were."""
        own, tensors = self.model.state_dict(), student.state_dict()
        for name in names:
            copy_into(tensors[name], own[name])

    def _move(self, tensors: dict[str, Tensor], names: AbstractSet[str], decay: float) -> None:
        own = self.model.state_dict()
        for name in sorted(names):  # the same order on every rank: gathering is an exchange
            whole = full_tensor(tensors[name]).to(own[name].dtype)
            if decay == 0.0:
                own[name].copy_(whole)
            else:
                own[name].lerp_(whole, 1.0 - decay)


def _to_buffers(module: nn.Module) -> None:
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is None:
                continue
            del part._parameters[name]
            value = parameter.detach().clone()
            part.register_buffer(name, value.float() if value.is_floating_point() else value)


def linear_decay(progress: float, start: float, end: float, fraction: float) -> float:
    """Return τ, which moves linearly from `start` to `end` over the first `fraction` of the run (arXiv 2202.03555, §3.2)."""
    return start + (end - start) * (min(progress / fraction, 1.0) if fraction else 1.0)
