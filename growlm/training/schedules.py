"""Learning-rate schedules as plain functions of tokens; the rate goes into the train step as an argument."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from growlm.training.settings import ScheduleConfig

AT_GROWTH = ("restart", "continue")


def _cosine(schedule: "ScheduleConfig", tokens: float, horizon: float) -> float:
    """Half a cosine from the end of warm-up to the horizon, constant after it."""
    after = (tokens - schedule.warmup_tokens) / max(horizon - schedule.warmup_tokens, 1)
    return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * min(after, 1.0)))


def _wsd(schedule: "ScheduleConfig", tokens: float, horizon: float) -> float:
    """Warm-up, stable, decay (arXiv 2404.06395): linear to `final` over the last `decay` of the horizon."""
    left = max(horizon - tokens, 0.0) / max(schedule.decay * horizon, 1)
    return schedule.final + (1 - schedule.final) * min(left, 1.0)


def _constant(schedule: "ScheduleConfig", tokens: float, horizon: float) -> float:
    return 1.0


def _power(schedule: "ScheduleConfig", tokens: float, horizon: float) -> float:
    """A power of the tokens, with no horizon (arXiv 2408.13359): 1 at the end of warm-up, then falling."""
    return max(tokens / schedule.warmup_tokens, 1.0) ** schedule.exponent


SCHEDULES: dict[str, Callable[["ScheduleConfig", float, float], float]] = {
    "cosine": _cosine,
    "wsd": _wsd,
    "constant": _constant,
    "power": _power,
}

# The schedules whose rate depends on where they end, and with it the address of a stage.
WITH_HORIZON = frozenset({"cosine", "wsd"})


def learning_rate(schedule: "ScheduleConfig", tokens: int, horizon: int) -> float:
    """The rate for the batch that ends at `tokens` tokens of a schedule that ends at `horizon`."""
    if tokens < schedule.warmup_tokens:
        return schedule.peak * tokens / schedule.warmup_tokens
    return schedule.peak * SCHEDULES[schedule.kind](schedule, tokens, horizon)
