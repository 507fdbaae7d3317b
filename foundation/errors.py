"""What a user is told when something is wrong: one sentence that says what, where and what to do.

The command line prints these without a traceback and exits with code 2; any other exception is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FoundationError(Exception):
    """Base of every error that a user can cause and mend."""


class RecipeError(FoundationError):
    """A recipe or an override that cannot be run as it is written."""


class DataError(FoundationError):
    """A dataset card, file, shard or point cloud that is not what it should be."""


class TrainingError(FoundationError):
    """A training run that cannot start or go on: process group, checkpoint, non-finite loss."""


class RegistryError(FoundationError):
    """A model that cannot be logged, registered, found or loaded."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" - did you mean 'pretrain'?"` for the nearest known name, or all of them when none is near."""
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, 1)
    if near:
        return f" - did you mean '{near[0]}'?"
    return f" (known: {', '.join(known)})" if known else ""
