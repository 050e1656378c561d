"""Layer orders by themselves: how often they use a layer, and their connection rates."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growlm.growth import connection_rate, layer_order


@given(source=st.integers(1, 40), factor=st.integers(1, 6), rest=st.integers(0, 39))
def test_stack_and_interleave_use_every_layer_about_equally(source, factor, rest):
    target = source * factor + rest % source
    for name in ("stack", "stack_top", "interleave"):
        order = layer_order(name, source, target)
        assert len(order) == target
        counts = np.bincount(order, minlength=source)
        assert counts.min() >= factor and counts.max() <= factor + 1
    stack, interleave = layer_order("stack", source, target), layer_order("interleave", source, target)
    assert all(b == (a + 1) % source for a, b in itertools.pairwise(stack))
    assert list(interleave) == sorted(interleave)


# arXiv 2405.15319, section 5.1 and the toy example there; partial stacking of 6 layers to 24, layers from 1
@pytest.mark.parametrize(
    ("order", "rate"),
    [
        (layer_order("stack", 8, 24), 21 / 23),
        (layer_order("interleave", 8, 24), 7 / 23),
        (layer_order("stack", 3, 6), 4 / 5),
        (layer_order("interleave", 3, 6), 2 / 5),
        (layer_order("stack", 6, 24), 20 / 23),
        ([0, 1] + [2, 3, 4, 5] * 5 + [4, 5], 18 / 23),
        ([0, 1] + [2, 3, 4] * 7 + [5], 17 / 23),
        ([0, 1, 2] * 7 + [3, 4, 5], 17 / 23),
        ([0, 1, 2, 3] + [4, 5] * 10, 14 / 23),
        ([0], 1.0),
        ([3, 2, 1, 0], 0.0),
    ],
)
def test_connection_rate_is_the_papers(order, rate):
    assert connection_rate(order) == pytest.approx(rate)


def test_connection_rates_as_the_paper_prints_them():
    printed = [f"{100 * connection_rate(layer_order(*o)):.1f}" for o in (("stack", 8, 24), ("interleave", 8, 24))]
    assert printed == ["91.3", "30.4"]
    assert f"{100 * connection_rate(layer_order('stack', 6, 24)):.1f}" == "87.0"
