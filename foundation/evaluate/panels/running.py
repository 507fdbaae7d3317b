"""Running panels: all that fit a dataset, one after the other, so that one that breaks does not lose the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module

from foundation.errors import FoundationError
from foundation.evaluate.panels.choice import Part, chosen, lacking
from foundation.evaluate.panels.samples import Made, Sheet, Truth
from foundation.evaluate.scores import Score

TOLD_SECONDS = 5.0
"""What takes longer than this is told of."""


def panel_scores(
    truth: Truth, made: Made, metrics: str | Sequence[str] = "quick", on_progress: Callable[[str], None] | None = None
) -> tuple[Score, ...]:
    """All scores of one model on one dataset; a metric that fails has a score with a problem.

    Metrics that do not fit the dataset are left out without a word, unless they were asked for by their names.
    """
    parts, named = chosen(metrics)
    found: list[Score] = []
    for part in parts:
        reason = lacking(
            part, truth.card, train=made.train is not None, timing=bool(made.timings),
            likelihood=made.likelihoods is not None,
        )  # fmt: skip
        if reason:
            if named:
                found.append(_sheet(truth, made, part).problem("all", part.name, "", f"not measured: {reason}"))
            continue
        started = time.monotonic()
        found += _guarded(truth, made, part)
        seconds = time.monotonic() - started
        if on_progress is not None and seconds > TOLD_SECONDS:
            on_progress(f"  {truth.card.name}, {made.model}: {part.name} took {seconds:.0f} s")
    return tuple(found)


def _guarded(truth: Truth, made: Made, part: Part) -> Iterator[Score]:
    """The scores of a part as far as it gets, and then why it got no further."""
    module, _, name = part.function.partition(":")
    try:
        function: Callable[[Truth, Made], Iterator[Score]] = getattr(
            import_module(f"foundation.evaluate.panels.{module}"), name
        )
        yield from function(truth, made)
    except FoundationError as error:
        yield _sheet(truth, made, part).problem("all", part.name, "", str(error))
    except Exception as error:  # a bug in one metric must not lose the others, at the end of a long job
        problem = f"this metric failed ({type(error).__name__}: {error}); please report it"
        yield _sheet(truth, made, part).problem("all", part.name, "", problem)


def _sheet(truth: Truth, made: Made, part: Part) -> Sheet:
    return Sheet(made.model, truth.card.name, part.panel)
