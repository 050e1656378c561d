"""The picture of the operators shows what growth does: every cell by hand."""

import jax
import numpy as np
import pytest
from matplotlib import image
from pictures import DEEP, PICTURES, SOURCE, WIDE, cells, main, operators_figure

from growlm.growth import plan_growth


def width(operator, **options):
    return cells(plan_growth(operator, SOURCE, WIDE, jax.random.key(1), **options), WIDE)


@pytest.mark.parametrize(("options", "kept"), [({}, np.full((4, 6), 0.5)), ({"block_diagonal": True}, None)], ids=str)
def test_copies_come_from_their_rows_and_columns(options, kept):
    grown = width("direct", **options)
    np.testing.assert_array_equal(grown.row, np.tile([[0], [1]], (2, 6)))
    np.testing.assert_array_equal(grown.column, np.tile([0, 1, 2], (4, 2)))
    blocks = np.kron(np.eye(2), np.ones((2, 3)))  # W twice on the diagonal
    np.testing.assert_allclose(grown.share, blocks if kept is None else kept)
    assert not grown.fresh.any()


def test_uneven_parts_of_a_row_add_up_to_the_row():
    share = width("direct", split_imbalance=0.6).share
    np.testing.assert_allclose(share[:2] + share[2:], 1, atol=1e-6)
    assert np.abs(share[:2] - share[2:]).min() > 0.01


def test_zero_is_zero_where_new_neurons_are_written_and_fresh_where_new_inputs_are_read():
    grown = width("zero")
    np.testing.assert_array_equal(grown.share[:2], [[1, 1, 1, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(grown.fresh, [[False] * 6] * 2 + [[True] * 6] * 2)
    fresh = width("random").fresh
    assert not fresh[:2, :3].any() and fresh.sum() == 24 - 6


def test_the_figure_has_a_bar_for_every_layer_and_a_box_for_every_entry(tmp_path):
    figure = operators_figure()
    layers, boxes = SOURCE.layers + DEEP.layers, WIDE.embed * WIDE.mlp
    assert [len(axes.patches) for axes in figure.axes] == [layers] * len(PICTURES) + [boxes] * len(PICTURES)
    main(tmp_path / "operators.png")
    assert image.imread(tmp_path / "operators.png").std() > 0.1
