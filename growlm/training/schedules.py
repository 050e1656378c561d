"""Learning-rate schedules as plain functions of tokens; the rate goes into the train step as an argument."""

import dataclasses
import math
from collections.abc import Callable

from growlm.errors import InputError, check_name, check_range

AT_GROWTH = ("restart", "continue")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over tokens. `restart` counts tokens from the start of the stage, `continue` goes on counting.

    peak: the highest rate. final: what it decays to, as a share of the peak. warmup_tokens: linear from zero.
    horizon_tokens: where cosine and wsd end; 0 means at the end of this stage. decay: the share of the horizon that
    wsd decays over. exponent: of the power schedule, peak x (tokens / warmup_tokens) ^ exponent.
    """

    kind: str = "cosine"
    peak: float = 1e-3
    final: float = 0.1
    warmup_tokens: int = 0
    horizon_tokens: int = 0
    decay: float = 0.2
    exponent: float = -0.51
    at_growth: str = "restart"

    def __post_init__(self):
        check_name("schedule.kind", self.kind, SCHEDULES)
        check_name("schedule.at_growth", self.at_growth, AT_GROWTH)
        check_range("schedule.peak", self.peak, low=0, low_allowed=False)
        check_range("schedule.final", self.final, low=0, high=1)
        check_range("schedule.warmup_tokens", self.warmup_tokens, low=0)
        check_range("schedule.horizon_tokens", self.horizon_tokens, low=0)
        check_range("schedule.decay", self.decay, low=0, high=1)
        check_range("schedule.exponent", self.exponent, high=0)
        if self.kind == "power" and not self.warmup_tokens:
            raise InputError("schedule.warmup_tokens is 0: the power schedule falls from there, so it must be > 0")


def _cosine(schedule: ScheduleConfig, tokens: float, horizon: float) -> float:
    """Half a cosine from the end of warm-up to the horizon, constant after it."""
    after = (tokens - schedule.warmup_tokens) / max(horizon - schedule.warmup_tokens, 1)
    return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * min(after, 1.0)))


def _wsd(schedule: ScheduleConfig, tokens: float, horizon: float) -> float:
    """Warm-up, stable, decay (arXiv 2404.06395): linear to `final` over the last `decay` of the horizon."""
    left = max(horizon - tokens, 0.0) / max(schedule.decay * horizon, 1)
    return schedule.final + (1 - schedule.final) * min(left, 1.0)


def _constant(schedule: ScheduleConfig, tokens: float, horizon: float) -> float:
    return 1.0


def _power(schedule: ScheduleConfig, tokens: float, horizon: float) -> float:
    """A power of the tokens, with no horizon (arXiv 2408.13359): 1 at the end of warm-up, then falling."""
    return max(tokens / schedule.warmup_tokens, 1.0) ** schedule.exponent


SCHEDULES: dict[str, Callable[[ScheduleConfig, float, float], float]] = {
    "cosine": _cosine,
    "wsd": _wsd,
    "constant": _constant,
    "power": _power,
}

# The schedules whose rate depends on where they end, and with it the address of a stage.
WITH_HORIZON = frozenset({"cosine", "wsd"})


def learning_rate(schedule: ScheduleConfig, tokens: int, horizon: int) -> float:
    """The rate for the batch that ends at `tokens` tokens of a schedule that ends at `horizon`."""
    if tokens < schedule.warmup_tokens:
        return schedule.peak * tokens / schedule.warmup_tokens
    return schedule.peak * SCHEDULES[schedule.kind](schedule, tokens, horizon)
