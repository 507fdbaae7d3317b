"""What whole showers cost with a generator that computes everything again for each token.

A step on T tokens takes a + b T + c T^2 seconds: products with the weights for every token, attention of all with all,
and what does not depend on T. This is fitted to steps of the lengths FIT, which reach the longest shower, so that
nothing is extrapolated but the number of steps; a step of another length checks the fit, and so does a whole
`generate_batch` of SHORT tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from generation.lines import CLOCKS, Line

FIT = (1, 100, 300, 600, 1000, 1690)
CHECK = 1300
SHORT = 64
EIGHT = 300
"""Tokens of a step on eight sequences at once."""


@dataclass
class Law:
    """Measures the steps of a line of the peer, and adds them up for showers of these numbers of hits."""

    line: Line
    hits: NDArray[np.int64]
    longest: int = FIT[-1]
    errors: list[float] = field(default_factory=list)
    short_errors: list[float] = field(default_factory=list)
    of_eight: list[float] = field(default_factory=list)

    def turn(self) -> None:
        """One turn: steps of all lengths, the fit, and the shower that follows from it."""
        fit = sorted({min(n, self.longest) for n in FIT})
        steps = {n: self.line.ask("forward", n) for n in (*fit, min(CHECK, self.longest))}
        short = self.line.ask("short", min(SHORT, self.longest))
        eight = self.line.ask("forward_of_eight", min(EIGHT, self.longest))
        if self.line.problem:
            return
        shower = {"objects": 1.0, "points": float(self.hits.mean())}
        for clock in CLOCKS:
            seconds = fitted({n: steps[n][clock] for n in fit}, int(self.hits.max()) + 1)
            whole = np.cumsum(seconds)
            shower[clock] = float(whole[self.hits].mean())
            if clock == "wall":
                check = min(CHECK, self.longest)
                self.errors.append(seconds[check - 1] / steps[check][clock] - 1)
                self.short_errors.append(whole[min(SHORT, self.longest) - 1] / short[clock] - 1)
                step = eight[clock] / 8 / seconds[min(EIGHT, self.longest) - 1]
                longest = self.hits[: len(self.hits) // 8 * 8].reshape(-1, 8).max(axis=1)
                self.of_eight.append(step * float(whole[longest].mean()) / shower[clock])
        self.line.turns.append(shower)

    def report(self) -> str:
        """How well the law holds."""
        if not self.line.measured:
            return ""
        error, short, eight = (100 * statistics.median(x) for x in (self.errors, self.short_errors, self.of_eight))
        return (f"- {self.line.name}: {1 / self.line.rate():,.0f} s per shower, added up from steps fitted at "
                f"{len(FIT)} lengths; the fit is {error:+.0f} % off at {CHECK} tokens, and {short:+.0f} % off a whole "
                f"`generate_batch` of {SHORT} tokens; by a step on eight of {EIGHT} tokens, a batch of 8, which goes "
                f"on until its longest shower ends, would take {eight:.0f} % of this per shower")  # fmt: skip


def fitted(seconds: Mapping[int, float], longest: int) -> NDArray[np.float64]:
    """Seconds of a step on 1 .. longest tokens, by a parabola through measured ones; relative errors count."""
    lengths = np.array(list(seconds), np.float64)
    values = np.array(list(seconds.values()))
    degree = min(2, len(lengths) - 1)
    return np.polyval(np.polyfit(lengths, values, degree, w=1 / values), np.arange(1, longest + 1))
