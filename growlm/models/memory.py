"""Texts read on from where they were left: every token goes through the layers once.

Shape suffixes: B batch, T new positions, S positions for which there is room, D embed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from growlm.models.architecture import DecoderConfig, Params
from growlm.models.decoder import Pass, depths, documents, hidden_in, hidden_states, tables_of
from growlm.models.layers import Context
from growlm.models.past import Past


class Memory(NamedTuple):
    """The tokens of a text so far, int32[B, S], and what the layers keep of them.

    `kept` has one entry for every scan over layers: by the branch's name, arrays [layers, B, ...]. It is None for an
    architecture with a branch that has not declared what it keeps, of which all tokens are read again each time.
    """

    tokens_BS: jax.Array
    kept: list[dict[str, Any]] | None


def new_memory(config: DecoderConfig, batch: int, length: int, *, dtype: Any = jnp.float32) -> Memory:
    """The memory of texts of no token yet, with room for `length`. Raises InputError for more than the model reads."""
    config.check_length("the length of a text", length)
    tokens_BS = jnp.zeros((batch, length), jnp.int32)
    if not config.architecture.remembers:
        return Memory(tokens_BS, None)

    def of_branch(branch: Any, layers: int) -> Any:
        declared = branch.memory(config, batch, length, dtype)
        deep = max(layers, 1)  # a scan over no layers is traced too
        return jax.tree.map(lambda leaf: jnp.zeros((deep, *leaf.shape), leaf.dtype), declared)

    branches = config.architecture.branches
    return Memory(tokens_BS, [{one.name: of_branch(one, layers) for one in branches} for layers in depths(config)])


def read_on(
    config: DecoderConfig,
    params: Params,
    memory: Memory,
    tokens_BT: jax.Array,
    begin_B: jax.Array,
    count_B: jax.Array,
    *,
    dtype: Any = jnp.float32,
    block_scale: jax.Array | None = None,
    document_end: int | None = None,
) -> tuple[jax.Array, jax.Array, Memory]:
    """The hidden states that a forward pass over the whole texts has at new positions.

    Args:
      config, params, dtype, block_scale, document_end: as in `hidden_states`.
      memory: from `new_memory` or an earlier call.
      tokens_BT: the new tokens, int32[batch, T].
      begin_B: how many tokens each row had before.
      count_B: how many of its new tokens are no padding. Hidden states of padding mean nothing, and where a row goes
        beyond its room nothing does.

    Returns:
      (hidden states [batch, T, embed], the head [embed, vocab], the memory with the new tokens).
    """
    past, new = Past(begin_B, count_B), tokens_BT.shape[1]
    tokens_BS = past.written(memory.tokens_BS, tokens_BT, 1)
    if memory.kept is None:
        options = {"dtype": dtype, "block_scale": block_scale, "document_end": document_end}
        x_ND, head_DV = hidden_states(config, params, tokens_BS, **options)
        x_BSD = x_ND.reshape(*tokens_BS.shape, -1)
        place_BT = jnp.clip(past.position_BT(new), 0, tokens_BS.shape[1] - 1)
        return jnp.take_along_axis(x_BSD, place_BT[..., None], axis=1), head_DV, Memory(tokens_BS, None)
    if document_end is not None:
        past = past._replace(document_BS=documents(tokens_BS, document_end))
    context = Context(tokens_BT, None, tables_of(config, tokens_BS.shape[1]), past=past)
    x_ND, head_DV, _, kept = hidden_in(config, params, context, Pass(jnp.dtype(dtype)), block_scale, memory.kept)
    return x_ND.reshape(*tokens_BT.shape, -1), head_DV, Memory(tokens_BS, kept)
