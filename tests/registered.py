"""What is registered in OPERATORS, with values for every option: a new operator is tested by being registered."""

import inspect

from hypothesis import strategies as st
from oracle import KEY, SMALL

from growlm.growth import CHOICES, OPERATORS, options_of, plan_growth

# Of options that are neither names nor flags; others are tried at their defaults.
VALUES = {"order": ["stack", "interleave"], "split_imbalance": [0.0, 0.6], "mask_tokens": [0, 100]}
VALUES |= {"drop_units": [0.0, 0.5], "router_noise": [0.0, 0.3]}

# Those whose maps are not learned from batches.
UNLEARNED = [name for name in OPERATORS if plan_growth(name, SMALL, SMALL, KEY).learner is None]


def values_of(operator):
    """Values of every option of an operator, by name, its default first."""
    parameters = inspect.signature(OPERATORS[operator]).parameters
    values = {}
    for name in options_of(operator):
        default = parameters[name].default
        known = [False, True] if isinstance(default, bool) else CHOICES.get(name, VALUES.get(name, []))
        values[name] = [default, *(value for value in known if value != default)]
    return values


@st.composite
def choices(draw, operators=UNLEARNED):
    """(operator, options), every option more often at its default than not."""
    operator = draw(st.sampled_from(operators))
    options = {name: draw(st.sampled_from([some[0], *some])) for name, some in values_of(operator).items()}
    return operator, options
