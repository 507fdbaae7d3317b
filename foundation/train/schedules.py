"""Learning rate against the step. No state, so resuming is exact and a schedule can be drawn before it is run."""

from __future__ import annotations

import math

from foundation.train.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Fraction of the peak learning rate at `step`: a linear warm-up, then what `schedule` says."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    left = _LEFT[config.schedule](min(1.0, done), config.decay_fraction)
    return config.final_learning_rate + (1.0 - config.final_learning_rate) * left


def _constant(done: float, decay_fraction: float) -> float:
    return 1.0


def _linear(done: float, decay_fraction: float) -> float:
    return 1.0 - done


def _cosine(done: float, decay_fraction: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


def _wsd(done: float, decay_fraction: float) -> float:
    """Warm-up, stable, decay (arXiv:2404.06395) with the decay 1 - sqrt of arXiv:2405.18392."""
    begin = 1.0 - decay_fraction
    return 1.0 if done <= begin else 1.0 - math.sqrt((done - begin) / decay_fraction)


_LEFT = {"constant": _constant, "linear": _linear, "cosine": _cosine, "wsd": _wsd}
"""By `schedule`: what is left between peak and end, when a share of the steps after the warm-up is done."""
