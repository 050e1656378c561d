"""Mamba-1 (arXiv 2312.00752): a selective state-space model over gated channels, after a short convolution.

Shape suffixes: B batch, T positions, D embed, I channels, R dt_rank, S state, K taps, N = B x T rows; C chunks of
L positions. The recurrence is time first, [T, B, ...], so that a chunk of it is one slice.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from growlm.models.architecture import MEMORY, Branch, DecoderConfig
from growlm.models.axes import Role, WeightSpec
from growlm.models.kernels import platform
from growlm.models.layers import Context, dense, weight

# Positions of a chunk of the recurrence. The backward pass keeps the state [B, I, S] before every chunk, and computes
# one chunk at a time again, some arrays [L, B, I, S]: at 4,096 positions there are 64 states, and 64 positions in each.
CHUNK = 64

_DT_RANGE = 1e-3, 1e-1  # initial time steps are log-uniform in it
_LEAST_DT = 1e-4


def conv(x_BTI: jax.Array, w_IK: jax.Array, b_I: jax.Array, document_BT: jax.Array | None) -> jax.Array:
    """A causal convolution of every channel by itself; the last tap is the position's own, others see its document."""
    length, taps = x_BTI.shape[1], w_IK.shape[1]
    y_BTI = x_BTI * w_IK[:, -1] + b_I
    for back in range(1, min(taps, length)):
        seen_BTI = x_BTI[:, :-back]
        if document_BT is not None:
            same_BT = document_BT[:, back:] == document_BT[:, :-back]
            seen_BTI = jnp.where(same_BT[..., None], seen_BTI, 0)
        y_BTI = y_BTI + jnp.pad(seen_BTI, ((0, 0), (back, 0), (0, 0))) * w_IK[:, -1 - back]
    return y_BTI


def selective_scan(
    u_BTI: jax.Array,
    dt_BTI: jax.Array,
    a_IS: jax.Array,
    b_BTS: jax.Array,
    c_BTS: jax.Array,
    document_BT: jax.Array | None = None,
    chunk: int = CHUNK,
) -> jax.Array:
    """The recurrence of every channel (arXiv 2312.00752, eq. 2 and 4, as its code discretises B): y [B, T, I].

    h_t = exp(dt_t a) h_(t-1) + dt_t u_t b_t and y_t = c_t h_t, from h = 0; it is 0 again where a document begins. In
    the precision of its arguments. On CPUs position by position; elsewhere, in a chunk, by an associative scan of as
    many passes as log2 of its length: on two CPU cores that took 3 to 4 times as long, each at its best chunk (8 x 128
    positions, 128 channels: 74 against 19 ms forward and backward; 8 x 512, 256 channels: 540 against 160 ms). On
    accelerators neither has been measured.

    Args:
      u_BTI, dt_BTI: what the channels get, and their positive time steps.
      a_IS: the negative rates of decay.
      b_BTS, c_BTS: what every position writes into the state and reads from it, one for all channels.
      document_BT: the number of each position's document; None for one document.
      chunk: positions of a chunk.
    """
    held_BT = None
    if document_BT is not None:
        same_BT = document_BT[:, 1:] == document_BT[:, :-1]
        held_BT = jnp.pad(same_BT, ((0, 0), (1, 0)))
    before_BIS = jnp.zeros((len(u_BTI), *a_IS.shape), u_BTI.dtype)
    return scan_on(before_BIS, u_BTI, dt_BTI, a_IS, b_BTS, c_BTS, held_BT, chunk)[1]


def scan_on(
    before_BIS: jax.Array,
    u_BTI: jax.Array,
    dt_BTI: jax.Array,
    a_IS: jax.Array,
    b_BTS: jax.Array,
    c_BTS: jax.Array,
    held_BT: jax.Array | None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """`selective_scan` from a state on: (the state after it, y).

    held_BT: where the state before a position is held, bool; None: everywhere. Other arguments are those there.
    """
    length = u_BTI.shape[1]
    chunk = min(chunk, length)
    held_BT = None if held_BT is None else held_BT.astype(u_BTI.dtype)

    def chunked(x_BT: jax.Array) -> jax.Array:
        """[B, T, ...] -> [C, L, B, ...], with zeros at the end: a time step of 0 keeps the state."""
        x_TB = jnp.pad(x_BT.swapaxes(0, 1), ((0, -length % chunk), *[(0, 0)] * (x_BT.ndim - 1)))
        return x_TB.reshape(-1, chunk, *x_TB.shape[1:])

    inputs = jax.tree.map(chunked, (u_BTI, dt_BTI, b_BTS, c_BTS, held_BT))
    one_chunk = jax.checkpoint(partial(_CHUNKS.get(platform(), _by_pairs), a_IS), prevent_cse=False)
    after_BIS, y_CLBI = jax.lax.scan(one_chunk, before_BIS, inputs)
    return after_BIS, y_CLBI.reshape(-1, *y_CLBI.shape[2:])[:length].swapaxes(0, 1)


def _terms(a_IS: jax.Array, u: jax.Array, dt: jax.Array, b: jax.Array, held: jax.Array | None) -> tuple[Any, Any]:
    """The factor on the state before and what is added to it, [..., B, I, S]: of one position or of many."""
    factor = jnp.exp(dt[..., None] * a_IS)
    factor = factor if held is None else factor * held[..., None, None]
    return factor, (dt * u)[..., None] * b[..., None, :]


def _by_position(a_IS: jax.Array, before_BIS: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
    """(the state before a chunk, its inputs [L, B, ...]) -> (the state after it, y [L, B, I]), one after the other."""

    def step(h_BIS: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        u_BI, dt_BI, b_BS, c_BS, held_B = inputs
        factor_BIS, added_BIS = _terms(a_IS, u_BI, dt_BI, b_BS, held_B)
        h_BIS = factor_BIS * h_BIS + added_BIS
        return h_BIS, jnp.sum(h_BIS * c_BS[:, None], axis=-1)

    return jax.lax.scan(step, before_BIS, inputs)


def _by_pairs(a_IS: jax.Array, before_BIS: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
    """As `_by_position`, all positions of the chunk at once: two steps of the recurrence are one of the same form."""
    u_LBI, dt_LBI, b_LBS, c_LBS, held_LB = inputs

    def both(first: tuple, second: tuple) -> tuple[jax.Array, jax.Array]:
        return second[0] * first[0], second[0] * first[1] + second[1]

    factor_LBIS, added_LBIS = jax.lax.associative_scan(both, _terms(a_IS, u_LBI, dt_LBI, b_LBS, held_LB))
    h_LBIS = factor_LBIS * before_BIS + added_LBIS
    return h_LBIS[-1], jnp.sum(h_LBIS * c_LBS[:, :, None], axis=-1)


_CHUNKS: dict[str, Callable] = {"cpu": _by_position}


class Mamba(nn.Module):
    """out(silu(gate x) * (scan(u) + D_skip u)) with u = silu(conv(input x)); the scan's dt, b and c are read from u."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_ND, context: Context):
        """[B x T, D] -> ([B x T, D], {})."""
        precise = jnp.promote_types(self.dtype, jnp.float32)

        def by_position(y_N: jax.Array) -> jax.Array:
            return y_N.reshape(context.batch, -1, y_N.shape[-1])

        u_BTI = by_position(dense(x_ND, weight(self, "input")))
        past, kept = context.past, {}
        u_BTI, kept["inputs"] = self._convolved(u_BTI, context)
        u_NI = u_BTI.reshape(x_ND.shape[0], -1)
        b_NS, c_NS = (dense(u_NI, weight(self, name)).astype(precise) for name in ("to_B", "to_C"))
        dt_NI = dense(dense(u_NI, weight(self, "dt_down")), weight(self, "dt_up")).astype(precise)
        dt_NI = nn.softplus(dt_NI + weight(self, "dt_bias", precise))
        a_IS = -jnp.exp(weight(self, "A_log", precise))
        u_BTI, dt_BTI = u_BTI.astype(precise), by_position(dt_NI)
        arguments = u_BTI, dt_BTI, a_IS, by_position(b_NS), by_position(c_NS)
        if past is None:
            y_BTI = selective_scan(*arguments, context.document_BT)
        else:
            y_BTI, kept["state"] = self._scanned_on(past, *arguments)
        y_BTI = (y_BTI + weight(self, "D_skip", precise) * u_BTI).astype(self.dtype)
        gate_NI = nn.silu(dense(x_ND, weight(self, "gate")))
        return dense(gate_NI * y_BTI.reshape(gate_NI.shape), weight(self, "out")), {} if past is None else {
            MEMORY: past.replaced(kept)
        }

    def _convolved(self, x_BTI: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        """(what the channels get, the inputs that the convolution of the next positions needs)."""
        past, document, last_BKI, w_IK = context.past, context.document_BT, None, weight(self, "conv")
        taps = w_IK.shape[1]
        new = x_BTI.shape[1]
        if past is not None:
            x_BTI = jnp.concatenate([past.memory["inputs"], x_BTI], axis=1)
            document = past.documents(new, back=taps - 1)
            place_BK = past.count_B[:, None] + jnp.arange(taps - 1)
            last_BKI = jnp.take_along_axis(x_BTI, place_BK[..., None], axis=1)
        u_BTI = conv(x_BTI, w_IK, weight(self, "conv_bias"), document)
        return nn.silu(u_BTI[:, -new:]), last_BKI

    def _scanned_on(self, past, u_BTI, dt_BTI, a_IS, b_BTS, c_BTS) -> tuple[jax.Array, jax.Array]:
        """(y, the state after the last token that is no padding)."""
        new = u_BTI.shape[1]
        live_BT, document, held_BT = past.live_BT(new), past.documents(new, back=1), None
        if document is not None:
            held_BT = (document[:, 1:] == document[:, :-1]) | ~live_BT
        dt_BTI = jnp.where(live_BT[..., None], dt_BTI, 0)  # a time step of 0 keeps the state
        after_BIS, y_BTI = scan_on(past.memory["state"], u_BTI, dt_BTI, a_IS, b_BTS, c_BTS, held_BT)
        return y_BTI, after_BIS


def _memory(config: Any, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The last inputs of the convolution, and the state."""
    state = jax.ShapeDtypeStruct((batch, config.channels, config.state), jnp.promote_types(dtype, jnp.float32))
    return {"inputs": jax.ShapeDtypeStruct((batch, config.taps - 1, config.channels), dtype), "state": state}


def scan_flops(config: Any, length: int) -> float:
    """Forward FLOPs a token of the recurrence, 6 for each channel and coordinate of its state, without exponentials.

    Products of dt with the rate and of dt u with b; two in h; two in the sum over c h.
    """
    return 6.0 * config.channels * config.state


def _initial_rates(key: jax.Array, config: Any, shape: tuple[int, ...]) -> jax.Array:
    """log(1 .. S) in every channel (S4D-Real)."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=jnp.float32)), shape)


def _initial_dt_bias(key: jax.Array, config: Any, shape: tuple[int, ...]) -> jax.Array:
    """The inverse softplus of time steps exp(U(log .001, log .1)), at least 1e-4."""
    low, high = map(math.log, _DT_RANGE)
    dt = jnp.maximum(jnp.exp(jax.random.uniform(key, shape, jnp.float32, low, high)), _LEAST_DT)
    return dt + jnp.log(-jnp.expm1(-dt))


def _initial_dt_up(key: jax.Array, config: Any, shape: tuple[int, ...]) -> jax.Array:
    """U(-1 / sqrt(R), 1 / sqrt(R))."""
    return jax.random.uniform(key, shape, jnp.float32, -1, 1) / math.sqrt(config.dt_rank)


# What is between `input` and `out` is elementwise in the channels, but for dt, b and c, which are read from all of
# them. Initial values are those of the authors' code for A_log, D_skip, dt_up and dt_bias. The others are growlm's,
# normal with variance 2 / (5 fan-in), where PyTorch's default is uniform with variance 1 / (3 fan-in), for conv_bias
# too, which is 0 here; `out` is divided by the root of the number of branches in both.
MAMBA = Branch(
    "mamba",
    Mamba,
    (
        WeightSpec("input", "embed> >channels"),
        WeightSpec("gate", "embed> >channels"),
        WeightSpec("conv", "channels>channels taps>", Role.FILTER, fan_in=("taps",)),
        WeightSpec("conv_bias", ">channels", Role.CONSTANT, init="zeros"),
        WeightSpec("dt_down", "channels> >dt_rank"),
        WeightSpec("dt_up", "dt_rank> >channels", init=_initial_dt_up, gain=1 / math.sqrt(3)),
        WeightSpec("dt_bias", ">channels", Role.CONSTANT, init=_initial_dt_bias),
        WeightSpec("to_B", "channels> >state"),
        WeightSpec("to_C", "channels> >state"),
        WeightSpec("A_log", "channels>channels state>state", Role.CONSTANT, init=_initial_rates),
        WeightSpec("D_skip", "channels>channels", Role.CONSTANT, init="ones"),
        WeightSpec("out", "channels> >stream"),
    ),
    flops=scan_flops,
    memory=_memory,
)
