"""One axis: what a map does to an array is the product with its matrix, whichever way it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.growth.maps import AxisMap, Dense, Gather, compose, identity
from growlm.growth.norms import NORM_RULES
from growlm.growth.width import copied, pad_index, padded
from growlm.models import NormKind

RMS = NORM_RULES[NormKind.RMS]


def matrix(gather, old):
    """The map as a full matrix [new, old]."""
    full = np.zeros((len(gather.index), old))
    for row, (column, scale) in enumerate(zip(gather.index, gather.scale, strict=True)):
        if column >= 0:
            full[row, column] = scale
    return full


@st.composite
def gathers(draw, old=None):
    """(gather, old): runs, repeats, anything with or without empty rows and scales."""
    old = old or draw(st.integers(1, 6))
    new = draw(st.integers(1, 24))
    index = draw(
        st.sampled_from([np.arange(new) % old, np.repeat(np.arange(old), 3), pad_index(old, max(new, old))])
        | st.lists(st.integers(-1, old - 1), min_size=1, max_size=24).map(np.asarray)
    )
    scale = draw(st.sampled_from([1.0, 0.5]) | st.just(None))
    return Gather.copies(index, np.linspace(0.5, 2, len(index)) if scale is None else scale), old


@settings(max_examples=settings.default.max_examples // 20)
@given(gathers(), st.integers(0, 2))
def test_take_is_the_product_with_the_matrix(case, axis):
    gather, old = case
    shape = [2, 3, 4]
    shape[axis] = old
    x = np.arange(1.0, 1 + np.prod(shape)).reshape(shape).astype(np.float32)
    wanted = np.moveaxis(np.tensordot(matrix(gather, old), x, (1, axis)), 0, axis)
    np.testing.assert_allclose(gather.take(jnp.asarray(x), axis), wanted, rtol=1e-6)
    dense = Dense(jnp.asarray(matrix(gather, old), jnp.float32), gather.index)
    np.testing.assert_allclose(dense.take(jnp.asarray(x), axis), wanted, rtol=1e-5)


@settings(max_examples=settings.default.max_examples // 20)
@given(st.data())
def test_one_map_after_another_is_the_product_and_products_associate(data):
    first, old = data.draw(gathers())
    second, _ = data.draw(gathers(len(first.index)))
    third, _ = data.draw(gathers(len(second.index)))
    product = matrix(second, len(first.index)) @ matrix(first, old)
    np.testing.assert_allclose(matrix(second.after(first), old), product)
    left, right = third.after(second).after(first), third.after(second.after(first))
    np.testing.assert_array_equal(left.index, right.index)
    np.testing.assert_allclose(left.scale, right.scale)


@settings(max_examples=settings.default.max_examples // 20)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 4))
def test_the_remainder_is_what_the_written_copies_do_not_see(old, copies, more):
    index = np.arange(old * copies + more) % old
    write = RMS.stream(index, old, "isometry").write
    x = np.random.default_rng(0).standard_normal((3, len(index)))
    with jax.enable_x64(True):
        rest = np.asarray(write.remainder(jnp.asarray(x), 1))
        np.testing.assert_allclose(rest @ matrix(write, old), 0, atol=1e-12)
        np.testing.assert_allclose(write.remainder(jnp.asarray(rest), 1), rest, atol=1e-12)  # a projection


def test_what_is_read_back_has_no_defect():
    assert copied(np.arange(7) % 3, 3).defect() < 1e-15
    assert copied(np.arange(7) % 3, 3, 0.6, np.random.default_rng(0)).defect() < 1e-15
    assert RMS.defect(RMS.stream(np.arange(7) % 3, 3, "isometry")) < 1e-15
    assert RMS.defect(RMS.stream(pad_index(3, 7), 3, "gain")) < 1e-15
    assert RMS.defect(RMS.stream(np.arange(7) % 3, 3, "gain")) > 0.1
    unread = AxisMap.make(3, Gather.copies(np.arange(6) % 3), Gather.copies(np.arange(6) % 3))
    assert unread.defect() == pytest.approx(1)  # copies that are not shared out


def test_origin_added_occurrence_and_copied():
    cycle = copied(np.array([0, 1, 2, 0, 1]), 3)
    assert cycle.added.tolist() == [False, False, False, True, True] and cycle.copied
    assert cycle.write.occurrence.tolist() == [0, 0, 0, 1, 1]
    zeros = padded(pad_index(2, 4), 2)
    assert zeros.origin.tolist() == [0, 1, -1, -1] and not zeros.copied
    assert zeros.added.tolist() == [False, False, True, True] and zeros.fresh.tolist() == zeros.added.tolist()
    assert identity(3).identity and not cycle.identity


def test_a_fresh_coordinate_that_is_then_written_as_zero_is_gone():
    first = padded(pad_index(2, 3), 2, fresh_write=True)
    keep, drop = Gather.copies(np.arange(3)), Gather.copies(np.arange(3), [1.0, 1.0, 0.0])
    assert compose(AxisMap.make(3, keep, keep), first).fresh_write.tolist() == [False, False, True]
    assert compose(AxisMap.make(3, drop, keep), first).fresh_write.tolist() == [False, False, False]
