"""Laws of training and of growth, and their fits to the records of runs. Plain NumPy and SciPy.

SciPy is imported where it is used: it takes a third of a second, and training only counts FLOPs.
"""

from growlm.laws.chinchilla import (
    HOFFMANN,
    MUENNIGHOFF,
    REANALYSIS,
    Chinchilla,
    ChinchillaFit,
    fit_chinchilla,
    left_out_error,
)
from growlm.laws.compute import exact_flops_per_token, training_flops
from growlm.laws.intervals import Interval, RangeWarning, SeedSpeedup, loss_gap, speedup_over_seeds
from growlm.laws.isoflop import (
    GuidelineFit,
    Slice,
    fit_compute_optimal,
    fit_growth_factor,
    fit_growth_timing,
)
from growlm.laws.kaplan import (
    KAPLAN_CURVE,
    KAPLAN_LOSS,
    KaplanCurve,
    KaplanFit,
    KaplanLoss,
    fit_kaplan_curve,
    fit_kaplan_loss,
    kaplan_compute_loss,
    measure_critical_batch,
)
from growlm.laws.multiplier import (
    Family,
    FamilyFit,
    Judgement,
    exponents_above_floor,
    fit_families,
    judge,
    measured_multipliers,
)
from growlm.laws.planner import Plan, plan
from growlm.laws.published import (
    GROWTH_FACTOR,
    average_params,
    growth_factor_equation,
    growth_timing,
    null_loss,
    rate_factor_at_growth,
    saturated_loss,
    step_law_batch,
    step_law_rate,
)
from growlm.laws.scaling import PowerLaw, fit_power_law, power_law
from growlm.laws.speedup import Curve, Speedup, cost_to_reach, curve, loss_at, smooth, speedup
from growlm.laws.timing import Answer, SharesFit, Valley, fit_shares, guideline_share, published_answers, share_of_law
from growlm.laws.vocabulary import Vocabulary, optimal_vocabulary, vocabulary_caveats, vocabulary_flops

__all__ = [
    "GROWTH_FACTOR",
    "HOFFMANN",
    "KAPLAN_CURVE",
    "KAPLAN_LOSS",
    "MUENNIGHOFF",
    "REANALYSIS",
    "Answer",
    "Chinchilla",
    "ChinchillaFit",
    "Curve",
    "Family",
    "FamilyFit",
    "GuidelineFit",
    "Interval",
    "Judgement",
    "KaplanCurve",
    "KaplanFit",
    "KaplanLoss",
    "Plan",
    "PowerLaw",
    "RangeWarning",
    "SeedSpeedup",
    "SharesFit",
    "Slice",
    "Speedup",
    "Valley",
    "Vocabulary",
    "average_params",
    "cost_to_reach",
    "curve",
    "exact_flops_per_token",
    "exponents_above_floor",
    "fit_chinchilla",
    "fit_compute_optimal",
    "fit_families",
    "fit_growth_factor",
    "fit_growth_timing",
    "fit_kaplan_curve",
    "fit_kaplan_loss",
    "fit_power_law",
    "fit_shares",
    "growth_factor_equation",
    "growth_timing",
    "guideline_share",
    "judge",
    "kaplan_compute_loss",
    "left_out_error",
    "loss_at",
    "loss_gap",
    "measure_critical_batch",
    "measured_multipliers",
    "null_loss",
    "optimal_vocabulary",
    "plan",
    "power_law",
    "published_answers",
    "rate_factor_at_growth",
    "saturated_loss",
    "share_of_law",
    "smooth",
    "speedup",
    "speedup_over_seeds",
    "step_law_batch",
    "step_law_rate",
    "training_flops",
    "vocabulary_caveats",
    "vocabulary_flops",
]
