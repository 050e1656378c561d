"""Model growth: pure functions that turn a small model's training state into a larger one's."""

from growlm.growth.apply import OPERATORS, OPTIMIZER_STATES, Growth, grow, grow_state, plan_growth
from growlm.growth.depth import ORDERS, connection_rate, layer_order

__all__ = [
    "OPERATORS",
    "OPTIMIZER_STATES",
    "ORDERS",
    "Growth",
    "connection_rate",
    "grow",
    "grow_state",
    "layer_order",
    "plan_growth",
]
