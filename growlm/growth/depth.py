"""Layer orders: which source layer each target layer starts from."""

import itertools
from collections.abc import Callable, Sequence

from growlm.errors import InputError, unknown

# A published order is a row: (source layers, target layers) -> one source layer for each target layer.
ORDERS: dict[str, Callable[[int, int], list[int]]] = {
    # G_stack (arXiv 2405.15319, algorithm 1): the whole list of blocks again and again, 0 1 2 0 1 2.
    "stack": lambda source, target: [layer % source for layer in range(target)],
    # The paper's interpolation (section 5.1): every layer in place, 0 0 1 1 2 2.
    "interleave": lambda source, target: [layer * source // target for layer in range(target)],
}


def layer_order(order: str | Sequence[int], source: int, target: int) -> tuple[int, ...]:
    """The source layer of each target layer.

    Args:
      order: a name in ORDERS, or an explicit list such as [0, 1, 2, 1, 2, 3].
      source, target: the numbers of layers.

    Raises:
      InputError: an unknown name, or a list that does not fit the two depths.
    """
    if isinstance(order, str):
        if order not in ORDERS:
            raise unknown("layer order", order, ORDERS)
        return tuple(ORDERS[order](source, target))
    if not isinstance(order, list | tuple):
        raise InputError(f"order is {order!r}: allowed are {', '.join(ORDERS)} or a list of the source's layers")
    if bad := [layer for layer in order if isinstance(layer, bool) or not isinstance(layer, int)]:
        raise InputError(f"order holds {bad[0]!r}: allowed are the source's layers 0 to {source - 1}")
    if len(order) != target:
        raise InputError(f"order lists {len(order)} layers and the target has {target}")
    if bad := [layer for layer in order if not 0 <= layer < source]:
        raise InputError(f"order holds layer {bad[0]}: allowed are the source's layers 0 to {source - 1}")
    return tuple(order)


def connection_rate(order: Sequence[int]) -> float:
    """The share of neighbouring layers that were neighbours in the source (arXiv 2405.15319, section 5.1)."""
    pairs = list(itertools.pairwise(order))
    return sum(b == a + 1 for a, b in pairs) / len(pairs) if pairs else 1.0
