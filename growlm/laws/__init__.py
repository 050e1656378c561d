"""What the records of runs say: how much compute was spent, and how much of it growing saved. Plain NumPy."""

from growlm.laws.flops import exact_flops_per_token, training_flops
from growlm.laws.speedup import Curve, Speedup, cost_to_reach, curve, smooth, speedup

__all__ = [
    "Curve",
    "Speedup",
    "cost_to_reach",
    "curve",
    "exact_flops_per_token",
    "smooth",
    "speedup",
    "training_flops",
]
