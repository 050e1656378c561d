"""The positions before the new ones, as a branch meets them in generation: where they end, and what it keeps of them.

Shape suffixes: L layers of a scan, B batch, T new positions, S positions for which there is room, H heads, K kv_heads,
G = query heads of a group x T, h head_dim.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Past(NamedTuple):
    """Where new tokens stand, and what the layers keep of those before for one branch: a part of `Context`.

    Attributes:
      begin_B: the position of each row's first new token.
      count_B: how many of the new tokens there are; the others are padding, of which nothing is kept.
      document_BS: the number of each position's document; None for one document.
      kept: what `Branch.memory` declares, of all layers of the scan, [L, ...].
      layer: the number of this one.
    """

    begin_B: jax.Array
    count_B: jax.Array
    document_BS: jax.Array | None = None
    kept: Any = None
    layer: Any = None

    @property
    def memory(self) -> Any:
        """What this layer keeps: `Branch.memory`, [...]."""
        return jax.tree.map(self.of_layer, self.kept)

    def of_layer(self, kept_L: jax.Array) -> jax.Array:
        """This layer's part of what all keep."""
        return jax.lax.dynamic_index_in_dim(kept_L, self.layer, keepdims=False)

    def replaced(self, memory: Any) -> Any:
        """What all layers keep, with that in the place of this one's: what a branch returns as MEMORY."""
        return jax.tree.map(
            lambda kept_L, new: jax.lax.dynamic_update_index_in_dim(kept_L, new, self.layer, 0), self.kept, memory
        )

    def position_BT(self, new: int) -> jax.Array:
        """The positions of the new tokens, and of padding."""
        return self.begin_B[:, None] + jnp.arange(new)

    def live_BT(self, new: int) -> jax.Array:
        """Which of the new tokens are no padding."""
        return jnp.arange(new) < self.count_B[:, None]

    def documents(self, new: int, back: int = 0) -> jax.Array | None:
        """The numbers of the documents, [B, back + T], from `back` positions before the first new one on."""
        if self.document_BS is None:
            return None
        place = self.begin_B[:, None] + jnp.arange(-back, new)
        return jnp.take_along_axis(self.document_BS, jnp.clip(place, 0, self.document_BS.shape[1] - 1), axis=1)

    def written(self, kept: jax.Array, new: jax.Array, axis: int, *layer: Any) -> jax.Array:
        """`kept`, [B, ..., S, ...] with S on this axis, with the new values [B, T, ...] at their positions.

        With the number of a layer, `kept` has an axis of layers before the others.
        """
        live_BT, room = self.live_BT(new.shape[1]), kept.shape[len(layer) + axis]
        place_BT = jnp.where(live_BT, self.position_BT(new.shape[1]), room)  # padding has no place, and is dropped
        places = (*layer, jnp.arange(len(new))[:, None], *[slice(None)] * (axis - 1), place_BT)
        return kept.at[places].set(new, mode="drop")


def attend(
    q_BTHh: jax.Array,
    k_BKSh: jax.Array,
    v_BKSh: jax.Array,
    past: Past,
    window: Any = None,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Causal grouped-query attention of new positions over all that are kept, their own among them: [B, T, H, h].

    Args:
      q_BTHh: the queries.
      k_BKSh, v_BKSh: keys and values by position, heads first, as products read them.
      past: where the queries stand.
      window: the number of positions that a query sees, which may depend on the layer: an integer scalar; None for all.
      scale, cap: as in `growlm.models.kernels.attention`.
    """
    batch, new, heads, head_dim = q_BTHh.shape
    kv_heads, room = k_BKSh.shape[1:3]
    q_BTHh = q_BTHh * (head_dim**-0.5 if scale is None else scale)
    q_BKGh = q_BTHh.reshape(batch, new, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    q_BKGh = q_BKGh.reshape(batch, kv_heads, -1, head_dim)
    at_least_float32 = jnp.promote_types(q_BTHh.dtype, jnp.float32)
    score_BKGS = jnp.einsum("bkgh,bksh->bkgs", q_BKGh, k_BKSh, preferred_element_type=at_least_float32)
    if cap is not None:
        score_BKGS = cap * jnp.tanh(score_BKGS / cap)
    position_BT1, position_S = past.position_BT(new)[..., None], jnp.arange(room)
    visible_BTS = position_S <= position_BT1
    if window is not None:
        visible_BTS &= position_S > position_BT1 - window
    document_BS, document_BT = past.document_BS, past.documents(new)
    if document_BS is not None and document_BT is not None:
        visible_BTS &= document_BS[:, None] == document_BT[..., None]
    visible_BKGS = jnp.tile(visible_BTS, (1, heads // kv_heads, 1))[:, None]
    weight_BKGS = jax.nn.softmax(jnp.where(visible_BKGS, score_BKGS, -1e30)).astype(v_BKSh.dtype)
    o_BKGh = jnp.einsum("bkgs,bksh->bkgh", weight_BKGS, v_BKSh)
    o = o_BKGh.reshape(batch, kv_heads, -1, new, head_dim).transpose(0, 3, 1, 2, 4)
    return o.reshape(batch, new, heads, head_dim)


def keys_and_values(config: Any, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The memory of attention, as `Branch.memory`: keys and values of every position, heads first."""
    heads = getattr(config, "kv_heads", config.heads)
    kept = jax.ShapeDtypeStruct((batch, heads, length, config.head_dim), dtype)
    return {"key": kept, "value": kept}


def recall(
    q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, past: Past, window: Any = None, **how: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`attend` after the new keys and values are kept: (its result, what all layers keep now)."""
    kept = {name: past.written(past.kept[name], x, 2, past.layer) for name, x in (("key", k_BTKh), ("value", v_BTKh))}
    return attend(q_BTHh, past.of_layer(kept["key"]), past.of_layer(kept["value"]), past, window, **how), kept
