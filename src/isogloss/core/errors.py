"""The errors that a user can meet. Each message says what is wrong, why it usually happens, and what to do.

The command line prints the message of an `IsoglossError` as one line and exits non-zero; any other exception is a defect
of isogloss and keeps its traceback.
"""

from __future__ import annotations


class IsoglossError(Exception):
    """Something that the user can mend: the message is complete without a traceback."""

    exit_code = 1


class ConfigError(IsoglossError):
    """A recipe, an override or an option is not what it must be."""

    exit_code = 2


class DataError(IsoglossError):
    """A corpus, a manifest or a recording cannot be used."""


class CheckpointError(IsoglossError):
    """A checkpoint is absent, damaged, foreign in an unknown way, or made for something else."""


class TrainingError(IsoglossError):
    """Training cannot go on: non-finite values, a collapse, or ranks that disagree."""


class MissingExtraError(IsoglossError):
    """An optional dependency is needed and absent."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs `{package}`, which is not installed; install it with `pip install 'isogloss[{extra}]'`"
        )
