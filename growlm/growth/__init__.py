"""Model growth: pure functions that turn a small model's training state into a larger one's."""

from growlm.growth.claims import claim, gradient_claim
from growlm.growth.depth import ORDERS, PARTIAL, connection_rate, layer_order
from growlm.growth.lifts import LIFTS
from growlm.growth.operators import (
    CHOICES,
    OPERATORS,
    RENAMED_OPTIONS,
    SHRINKS,
    function_of,
    hashed_options,
    options_of,
    plan_growth,
)
from growlm.growth.plan import Growth
from growlm.growth.preset import Preset
from growlm.growth.presets import resolve
from growlm.growth.published import PRESETS
from growlm.growth.shrink import describe_lost, lost, plan_undo, shrink, undo
from growlm.growth.state import OPTIMIZER_STATES, describe, grow, grow_state, growth_key
from growlm.growth.targets import plan_target
from growlm.growth.verify import describe_verdict, verify

__all__ = [
    "CHOICES",
    "LIFTS",
    "OPERATORS",
    "OPTIMIZER_STATES",
    "ORDERS",
    "PARTIAL",
    "PRESETS",
    "RENAMED_OPTIONS",
    "SHRINKS",
    "Growth",
    "Preset",
    "claim",
    "connection_rate",
    "describe",
    "describe_lost",
    "describe_verdict",
    "function_of",
    "gradient_claim",
    "grow",
    "grow_state",
    "growth_key",
    "hashed_options",
    "layer_order",
    "lost",
    "options_of",
    "plan_growth",
    "plan_target",
    "plan_undo",
    "resolve",
    "shrink",
    "undo",
    "verify",
]
