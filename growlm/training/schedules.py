"""Learning-rate schedules as plain functions of tokens; the rate goes into the train step as an argument."""

import dataclasses
import math
from collections.abc import Callable

from growlm.errors import InputError, check_name, check_range, must_be

AT_GROWTH = ("restart", "continue")
REWARMS = ("all", "new")
SMALLEST_RATIO = 1e-3  # an exponential decay reaches no zero

# (schedule, tokens, horizon, sequences of a batch) -> the learning rate.
Rate = Callable[["ScheduleConfig", float, float, int], float]


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over tokens; after `warmup_tokens`, over which it rises from zero, by `kind`.

    Attributes:
      kind: a name in `SCHEDULES`: "cosine", "wsd", "constant", "power" or "power_scheduler".
      peak_lr: the highest learning rate.
      end_lr_ratio: what cosine and wsd decay to, as a share of peak_lr; 0: to zero. What the Power scheduler decays to,
        as a share of its rate before that, where 0 stands for `SMALLEST_RATIO`.
      warmup_tokens: of the linear warm-up.
      horizon_tokens: where cosine, wsd and the Power scheduler end; 0: at the end of the stage.
      decay: the share of the horizon over which wsd decays linearly (arXiv 2404.06395) and the Power scheduler
        exponentially; 0: neither decays.
      exponent: of power, peak_lr x (tokens / warmup_tokens) ^ exponent, and of the Power scheduler.
      amplitude: of the Power scheduler (arXiv 2408.13359), min(peak_lr, batch x amplitude x tokens ^ exponent), with
        the batch in sequences, in the paper of 4096 tokens; its peak_lr is 0.02.
      at_growth: "restart" counts tokens from the start of the stage, "continue" goes on counting.
      rewarm_tokens: with "continue", the tokens after the growth over which a factor on the learning rate rises from 0
        to 1. The first update has none at all, as in arXiv 2609.19107, which takes 40 steps.
      rewarm: what the factor is on: "all" weights, or what the growth added, the "new" slices (SPARKLING, arXiv
        2602.02472).
    """

    kind: str = "cosine"
    peak_lr: float = dataclasses.field(default=1e-3, metadata={"formerly": "peak"})
    end_lr_ratio: float = dataclasses.field(default=0.1, metadata={"formerly": "final"})
    warmup_tokens: int = 0
    horizon_tokens: int = 0
    decay: float = 0.2
    exponent: float = -0.51
    amplitude: float = 4.0
    at_growth: str = "restart"
    rewarm_tokens: int = 0
    rewarm: str = "all"

    def __post_init__(self):
        check_name("schedule.kind", self.kind, SCHEDULES)
        check_name("schedule.at_growth", self.at_growth, AT_GROWTH)
        check_name("schedule.rewarm", self.rewarm, REWARMS)
        check_range("schedule.peak_lr", self.peak_lr, low=0, low_allowed=False)
        check_range("schedule.end_lr_ratio", self.end_lr_ratio, low=0, high=1)
        check_range("schedule.warmup_tokens", self.warmup_tokens, low=0)
        check_range("schedule.horizon_tokens", self.horizon_tokens, low=0)
        check_range("schedule.rewarm_tokens", self.rewarm_tokens, low=0)
        check_range("schedule.decay", self.decay, low=0, high=1)
        check_range("schedule.exponent", self.exponent, high=0)
        check_range("schedule.amplitude", self.amplitude, low=0, low_allowed=False)
        if self.rewarm_tokens and self.at_growth != "continue":
            raise must_be("schedule.rewarm_tokens", "0 where a schedule restarts with a warm-up", self.rewarm_tokens)
        if self.rewarm != "all" and not self.rewarm_tokens:
            raise must_be("schedule.rewarm", "'all' without schedule.rewarm_tokens", self.rewarm)
        if self.kind == "power" and not self.warmup_tokens:
            raise InputError("schedule.warmup_tokens must be > 0 where the power schedule falls from there, got 0")


def _cosine(schedule: ScheduleConfig, tokens: float, horizon: float) -> float:
    """Half a cosine from the end of warm-up to the horizon, constant after it."""
    after = (tokens - schedule.warmup_tokens) / max(horizon - schedule.warmup_tokens, 1)
    return schedule.end_lr_ratio + (1 - schedule.end_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(after, 1.0)))


def _wsd(schedule: ScheduleConfig, tokens: float, horizon: float) -> float:
    """Warm-up, stable, decay: linear to `end_lr_ratio` over the last `decay` of the horizon, if that is not 0."""
    if not schedule.decay:
        return 1.0
    left = max(horizon - tokens, 0.0) / max(schedule.decay * horizon, 1)
    return schedule.end_lr_ratio + (1 - schedule.end_lr_ratio) * min(left, 1.0)


def _constant(schedule: ScheduleConfig, tokens: float, horizon: float) -> float:
    return 1.0


def _power(schedule: ScheduleConfig, tokens: float, horizon: float) -> float:
    """A power of the tokens, with no horizon: 1 at the end of warm-up, then falling."""
    return max(tokens / schedule.warmup_tokens, 1.0) ** schedule.exponent


def _power_scheduler(schedule: ScheduleConfig, tokens: float, horizon: float, batch: int) -> float:
    """The Power scheduler: its warm-up ends on the power law, and its decay begins there."""

    def law(at: float) -> float:
        return min(schedule.peak_lr, batch * schedule.amplitude * max(at, 1.0) ** schedule.exponent)

    if tokens < schedule.warmup_tokens:
        return law(schedule.warmup_tokens) * tokens / schedule.warmup_tokens
    begin = (1 - schedule.decay) * horizon
    if tokens <= begin or not schedule.decay:
        return law(tokens)
    done = min((tokens - begin) / max(horizon - begin, 1.0), 1.0)
    return law(begin) * max(schedule.end_lr_ratio, SMALLEST_RATIO) ** done


def _after_warmup(factor: Callable[[ScheduleConfig, float, float], float]) -> Rate:
    """The learning rate of a schedule that warms up to peak_lr and is a factor on that from there."""

    def rate(schedule: ScheduleConfig, tokens: float, horizon: float, batch: int) -> float:
        if tokens < schedule.warmup_tokens:
            return schedule.peak_lr * tokens / schedule.warmup_tokens
        return schedule.peak_lr * factor(schedule, tokens, horizon)

    return rate


SCHEDULES: dict[str, Rate] = {
    "cosine": _after_warmup(_cosine),
    "wsd": _after_warmup(_wsd),
    "constant": _after_warmup(_constant),
    "power": _after_warmup(_power),
    "power_scheduler": _power_scheduler,
}

# The schedules whose learning rate depends on where they end, and with it the hash of a stage.
WITH_HORIZON = frozenset({"cosine", "wsd", "power_scheduler"})


def learning_rate(schedule: ScheduleConfig, tokens: int, horizon: int, batch: int = 1) -> float:
    """The learning rate of the batch that ends at `tokens` tokens of a schedule that ends at `horizon`.

    batch: the number of its sequences, which the Power scheduler heeds.
    """
    return SCHEDULES[schedule.kind](schedule, tokens, horizon, batch)


def rewarm_factor(schedule: ScheduleConfig, tokens: int) -> float:
    """The factor of the re-warm on the learning rate of the batch that begins `tokens` tokens after the growth."""
    return min(max(tokens, 0) / schedule.rewarm_tokens, 1.0) if schedule.rewarm_tokens else 1.0
