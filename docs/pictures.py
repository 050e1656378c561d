"""The operators as pictures: which layer and which entry of a matrix everything in a grown model comes from.

    python docs/pictures.py docs/operators.png

Nothing is drawn by hand: every colour and number is read off a growth that `growlm.grow` would carry out.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from growlm.growth.expand import grow_params
from growlm.growth.operators import plan_growth
from growlm.growth.plan import Growth
from growlm.models import LLAMA, ModelConfig, Params, declared, nest
from growlm.report.style import LIGHT

SOURCE = ModelConfig(layers=3, embed=2, heads=1, kv_heads=1, head_dim=2, mlp=3, vocab=2)
DEEP = replace(SOURCE, layers=6)
WIDE = replace(SOURCE, embed=4, mlp=6)
SHOWN = LLAMA.weights["blocks/mlp/gate"]  # reads embed, writes mlp
FRESH, EMPTY = "#c9ced4", "#ffffff"

# Title, operator, options in depth and in width.
PICTURES: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("direct: stack (G_stack)\neven copies", "direct", {}, {}),
    ("direct: interleave\nuneven copies", "direct", {"order": "interleave"}, {"split_imbalance": 0.6}),
    ("direct: diagonal\nin width", "direct", {"order": [0, 1, 2, 1, 2, 2]}, {"block_diagonal": True}),
    ("zero", "zero", {"order": "interleave"}, {}),
    ("random", "random", {}, {}),
    ("learn (at its start)", "learn", {}, {}),
)


@dataclass(frozen=True)
class Cells:
    """What the entries of a matrix [rows, columns] are: the source's row and column (-1: none), how much of it."""

    row: np.ndarray
    column: np.ndarray
    share: np.ndarray
    fresh: np.ndarray


def cells(growth: Growth, target: ModelConfig) -> Cells:
    """The shown matrix of the first layer of a grown model, entry by entry. A share is that of a source of ones."""
    if growth.learner:  # its maps before they are trained
        growth = growth.with_matrices(growth.learner.initial())
    grown = grow_params(growth, SOURCE, target, _ones(SOURCE), jax.random.key(0))
    row, column = growth.maps["embed"].origin, growth.maps["mlp"].origin
    (first, *_), by_row, by_column = growth.fresh(SHOWN)
    shape = (len(row), len(column))
    return Cells(
        np.broadcast_to(row[:, None], shape),
        np.broadcast_to(column, shape),
        np.asarray(grown["blocks"]["mlp"]["gate"][0]),
        first | by_row[:, None] | by_column,
    )


def _ones(config: ModelConfig) -> Params:
    return nest({weight.path: jnp.ones(weight.shape(config)) for weight in declared(config)})


def operators_figure() -> Figure:
    """Every operator as a column: the source above, the model grown in depth and a matrix grown in width below."""
    figure = Figure(figsize=(2 * len(PICTURES), 4.1), layout="constrained", facecolor=LIGHT.paper)
    panels = figure.subplots(2, len(PICTURES), height_ratios=(1.1, 1))
    for number, (title, operator, depth, width) in enumerate(PICTURES):
        key = jax.random.key(1)
        _draw_depth(panels[0, number], plan_growth(operator, SOURCE, DEEP, key, **depth))
        _draw_width(panels[1, number], cells(plan_growth(operator, SOURCE, WIDE, key, **width), WIDE))
        panels[0, number].set_title(title, fontsize=9, color=LIGHT.ink)
    panels[0, 0].set_ylabel("3 layers to 6", fontsize=9, color=LIGHT.ink)
    panels[1, 0].set_ylabel("mlp/gate, 2 x 3 to 4 x 6", fontsize=9, color=LIGHT.ink)
    return figure


def _bare(axes: Axes, wide: float, high: float) -> None:
    axes.set(xlim=(0, wide), ylim=(0, high), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)


def _box(axes: Axes, x: float, y: float, width: float, height: float, **style: Any) -> None:
    axes.add_patch(Rectangle((x, y), width, height, linewidth=1, **{"edgecolor": LIGHT.ink} | style))


def _draw_depth(axes: Axes, growth: Growth) -> None:
    """Layers as bars, the first at the bottom: the source's left, the target's right; hollow ones add nothing yet."""
    _bare(axes, 6, 6.4)
    for layer in range(SOURCE.layers):
        _box(axes, 0.4, layer + 0.1, 1.8, 0.8, facecolor=LIGHT.runs[layer])
    axes.annotate("", (3.4, 3), (2.4, 3), arrowprops={"arrowstyle": "->", "color": LIGHT.ink})
    for layer, origin in enumerate(growth.order):
        colour = FRESH if origin < 0 else LIGHT.runs[origin]
        if layer in growth.zero_residual_layers:
            _box(axes, 3.6, layer + 0.1, 1.8, 0.8, facecolor=EMPTY, edgecolor=colour, hatch="....")
        else:
            _box(axes, 3.6, layer + 0.1, 1.8, 0.8, facecolor=colour, hatch="////" if origin < 0 else "")


def _draw_width(axes: Axes, grown: Cells) -> None:
    """The matrix; colour says which column of the source, lightness which row, the number how much of the entry."""
    rows, columns = grown.share.shape
    _bare(axes, columns, rows)
    for row in range(rows):
        for column in range(columns):
            y = rows - 1 - row
            share, old_row, old_column = grown.share[row, column], grown.row[row, column], grown.column[row, column]
            if grown.fresh[row, column] or min(old_row, old_column) < 0:
                empty = not grown.fresh[row, column] and share == 0
                _box(axes, column, y, 1, 1, facecolor=EMPTY if empty else FRESH, hatch="" if empty else "////")
            else:
                _box(axes, column, y, 1, 1, facecolor=_shade(old_column, old_row) if share else EMPTY)
            if (not grown.fresh[row, column] and min(old_row, old_column) >= 0) or share == 0:
                axes.text(
                    column + 0.5, y + 0.5, f"{share:.2g}".replace("0.", "."), ha="center", va="center", fontsize=7
                )


def _shade(column: int, row: int) -> tuple[float, ...]:
    """A colour of its own for every entry of the source."""
    light = 0.25 + 0.4 * row
    return tuple((1 - light) * part + light for part in to_rgb(LIGHT.runs[column]))


def main(path: str = "docs/operators.png") -> None:
    """Writes the figure as a PNG, where an argument says or where the README has it."""
    figure = operators_figure()
    FigureCanvasAgg(figure)
    figure.savefig(Path(path), dpi=130)


if __name__ == "__main__":
    main(*sys.argv[1:2])
