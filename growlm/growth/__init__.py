"""Model growth: pure functions that turn a small model's training state into a larger one's."""

from growlm.growth.apply import OPTIMIZER_STATES, grow, grow_state, growth_key
from growlm.growth.depth import ORDERS, connection_rate, layer_order
from growlm.growth.operators import OPERATORS, Growth, claim, plan_growth

__all__ = [
    "OPERATORS",
    "OPTIMIZER_STATES",
    "ORDERS",
    "Growth",
    "claim",
    "connection_rate",
    "grow",
    "grow_state",
    "growth_key",
    "layer_order",
    "plan_growth",
]
