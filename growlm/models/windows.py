"""Attention whose window depends on the layer: every n-th layer sees all positions, the others a sliding window."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from growlm.errors import must_be
from growlm.models.stored import Settings, integer

SLIDING, FULL = "sliding_attention", "full_attention"  # layer_types in a config.json

# The variants of attention, in the order of `windows` and of tables.
_FULL, _SLIDING = 0, 1


def variants(config: Any) -> tuple[int, ...]:
    """The variant of attention that each layer runs: layers global_every, 2 global_every, ... see all positions."""
    return tuple(_SLIDING if (layer + 1) % config.global_every else _FULL for layer in range(config.layers))


def windows(config: Any) -> tuple[int | None, ...]:
    """The number of positions that a query sees, by variant; None for all before it."""
    return None, config.sliding_window


def tables(full: Any, sliding: Any) -> Any:
    """Tables of all layers with a leading axis of variants."""
    return jax.tree.map(lambda *each: jnp.stack(each), full, sliding)


def check_windows(sliding_window: Any, global_every: int) -> None:
    """Raises InputError unless there is a window exactly where some layers have one."""
    if sliding_window is None:
        if global_every != 1:
            raise must_be("model.global_every", "1 without a model.sliding_window, as all layers see all", global_every)
        return
    if isinstance(sliding_window, bool) or not isinstance(sliding_window, int) or sliding_window < 1:
        raise must_be("model.sliding_window", "None or a positive integer", sliding_window)
    if global_every == 1:
        rule = "None where model.global_every is 1, as no layer has a window"
        raise must_be("model.sliding_window", rule, sliding_window)


def layer_types(config: Any) -> list[str]:
    """The entry of a config.json."""
    return [FULL if variant == _FULL else SLIDING for variant in variants(config)]


def read_windows(name: str, settings: Settings, layers: int, default: int) -> dict[str, Any]:
    """The fields sliding_window and global_every of a config.json.

    Args:
      name: of the family.
      settings: the config.json.
      layers: their number.
      default: global_every, where the config.json says nothing of it.

    Raises InputError where layers are of other types than every n-th full and the others sliding.
    """
    every = integer("sliding_window_pattern", settings.get("sliding_window_pattern", default))
    kinds = settings.get("layer_types")
    if kinds is not None:
        every = _pattern_of(name, kinds, layers, every)
    window = settings.get("sliding_window", 4096)
    return {"sliding_window": None if every == 1 else window, "global_every": every}


def _pattern_of(name: str, kinds: Any, layers: int, default: int) -> int:
    """The n of which `kinds` are every n-th full; the default where it fits."""
    known = isinstance(kinds, Sequence) and len(kinds) == layers and set(kinds) <= {FULL, SLIDING}
    found = [default] + [kinds.index(FULL) + 1] * (known and FULL in kinds)
    for every in found:
        if known and list(kinds) == [SLIDING if (layer + 1) % every else FULL for layer in range(layers)]:
            return every
    rule = f"{layers} words, every n-th of them {FULL} and the others {SLIDING}"
    raise must_be(f"config.json: layer_types of {name}", rule, kinds)


def write_windows(config: Any, settings: Mapping[str, Any], default: int) -> dict[str, Any]:
    """A config.json with the windows of a model written into it."""
    said = {**settings, "sliding_window": config.sliding_window}
    if config.sliding_window is None and "sliding_window" in settings:
        said["sliding_window"] = settings["sliding_window"]  # of no layer
    if "layer_types" in settings or config.global_every != default:
        said["layer_types"] = layer_types(config)
    return said
