"""Layer orders: which source layer each target layer starts from."""

import itertools
from collections.abc import Callable, Sequence

from growlm.errors import must_be, unknown
from growlm.models.architecture import DecoderConfig


def _added(order: str, source: int, target: int, whole_blocks: bool = False) -> int:
    """The number of added layers. Raises InputError if above `source` or, for whole_blocks, no divisor of it."""
    added = target - source
    if whole_blocks and added and source % added:
        raise must_be(f"the layers that order {order!r} adds to {source}", f"a divisor of {source}", added)
    if added > source:
        raise must_be(f"the layers that order {order!r} adds to {source}", f"at most {source}", added)
    return added


def _again(source: int, added: int, end: int) -> list[int]:
    """All layers, with the last `added` layers up to layer `end` (counted from 1) repeated after it."""
    return [*range(end), *range(end - added, source)]


def _top(source: int, target: int) -> list[int]:
    return _again(source, _added("top", source, target), source)


def _middle(source: int, target: int) -> list[int]:
    added = _added("middle", source, target, whole_blocks=True)
    blocks = source // added if added else 0
    return _again(source, added, added * -(-blocks // 2))


def _centre(source: int, target: int) -> list[int]:
    added = _added("centre", source, target)
    return _again(source, added, -(-source // 2) + added // 2)


def _overlap(source: int, target: int) -> list[int]:
    _added("overlap", source, target)
    first = -(-target // 2)
    return [*range(first), *range(source - (target - first), source)]


def _expand(source: int, target: int) -> list[int]:
    added = _added("expand", source, target, whole_blocks=True)
    every = source // added if added else source + 1
    return [layer for number in range(source) for layer in [number] * (2 if (number + 1) % every == 0 else 1)]


# A published order is a row: (source layers, target layers) -> one source layer for each target layer.
ORDERS: dict[str, Callable[[int, int], list[int]]] = {
    # G_stack (arXiv 2405.15319, algorithm 1): the whole list of blocks again and again, 0 1 2 0 1 2.
    "stack": lambda source, target: [layer % source for layer in range(target)],
    # bert2BERT (arXiv 2110.07143): whole copies, and what is left over from the top, 0 1 2 0 1 2 2.
    "stack_top": lambda source, target: (
        [*range(source)] * (target // source) + [*range(source - target % source, source)]
    ),
    # The paper's interpolation (section 5.1): every layer in place, 0 0 1 1 2 2.
    "interleave": lambda source, target: [layer * source // target for layer in range(target)],
    # Gradual stacking (Reddi et al., ICML 2023) and MSLT (arXiv 2011.13635): the last layers once more, 0 1 2 1 2.
    "top": _top,
    # MIDAS (arXiv 2409.19044; block ceil(n/2) - 1 of n by the review in 2512.08819): n blocks of as many layers as are
    # added, the middle one twice, the lower one of two middles: 0 1 2 3 2 3 4 5.
    "middle": _middle,
    # LIDAS (arXiv 2512.08819): a block of as many layers as are added, around layer ceil(L/2), twice: 0 1 2 1 2 3. The
    # paper's rounding is not known; here the block's middle layer, ceil(b/2) of b, is layer ceil(L/2) of L, from 1.
    "centre": _centre,
    # SOLAR (arXiv 2312.15166): the first half of the target and the last, 0..23 8..31 for 32 to 48.
    "overlap": _overlap,
    # LLaMA Pro (arXiv 2401.02415): after every m-th layer a copy of it, 0 1 1 2 3 3.
    "expand": _expand,
}


# The paper's partial stackings of 6 layers to 24 (arXiv 2405.15319, ablations), the best group first: layers counted
# from 1, x for repetitions; with the connection rate in percent as printed there (exact: 86.96, 78.26, 73.91, 60.87).
PARTIAL: dict[str, float] = {
    "123456x4": 87.0,
    "12-3456x5-56": 78.3,
    "12-345x7-6": 74.0,
    "123-456x7": 74.0,
    "1234-56x10": 60.7,
    "12-34x10-56": 60.7,
    "1-234x7-56": 74.0,
    "123x7-456": 74.0,
}


def partial_order(pattern: str) -> list[int]:
    """The order of a name in PARTIAL: `12-345x7-6` is 0 1, seven times 2 3 4, and 5."""
    parts = [part.partition("x") for part in pattern.split("-")]
    return [int(layer) - 1 for layers, _, times in parts for layer in layers * int(times or 1)]


def layer_order(order: str | Sequence[int], source: int, target: int) -> tuple[int, ...]:
    """The source layer of each target layer.

    Args:
      order: a name in ORDERS, or an explicit list such as [0, 1, 2, 1, 2, 3].
      source, target: the numbers of layers.

    Raises:
      InputError: an unknown name, a source without layers, an order that does not fit the two depths.
    """
    if isinstance(order, str):
        if order not in ORDERS:
            raise unknown("layer order", order, ORDERS)
        if not source and target:
            raise must_be("the source's model.layers", ">= 1, as there must be a layer to copy (random needs none)", 0)
        return tuple(ORDERS[order](source, target)) if source else ()
    if not isinstance(order, list | tuple):
        raise must_be("order", f"{', '.join(ORDERS)} or a list of the source's layers", order)
    if len(order) != target:
        raise must_be("order", f"a list of {target} layers, as many as the target has", len(order))
    for layer in order:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < source:
            raise must_be("order", f"a list of the source's layers, 0 to {source - 1}", layer)
    return tuple(order)


def stack_order(order: str | Sequence[int], source: DecoderConfig, target: DecoderConfig) -> tuple[int, ...]:
    """The source layer of each layer of the target, in which sections of one name grow as one, each in its place.

    A list is of the whole stack. Raises InputError as `layer_order`.
    """
    before, after = (_section_layers(config) for config in (source, target))
    if not isinstance(order, str) or len(after) == 1:
        return layer_order(order, source.depth, target.depth)
    found, begin = [], 0
    for name, layers in after.items():
        held = before.get(name, 0)
        found += [begin + layer for layer in layer_order(order, held, layers)]
        begin += held
    return tuple(found)


def _section_layers(config: DecoderConfig) -> dict[str, int]:
    """The layers of all sections of each name."""
    layers: dict[str, int] = {}
    for section in config.architecture.sections(config):
        layers[section.name] = layers.get(section.name, 0) + section.layers
    return layers


def connection_rate(order: Sequence[int]) -> float:
    """The share of neighbouring layers that were neighbours in the source (arXiv 2405.15319, section 5.1)."""
    pairs = list(itertools.pairwise(order))
    return sum(b == a + 1 for a, b in pairs) / len(pairs) if pairs else 1.0
