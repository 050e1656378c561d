"""A mixture of experts: a router picks some SwiGLUs for every token, and weighs them (arXiv 1701.06538, 2401.04088).

Shape suffixes: N rows, D embed, E experts, K experts of a token, F mlp, M = N x K assignments.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from growlm.errors import must_be
from growlm.models.architecture import Branch, DecoderConfig, no_memory
from growlm.models.axes import Axis, Kind, Role, WeightSpec
from growlm.models.blocked import blocked_experts
from growlm.models.kernels import platform
from growlm.models.layers import Context, dense, has, weight
from growlm.models.ragged import chosen_experts
from growlm.models.sharding import BATCH, batch_parts, current_mesh

Experts = tuple[jax.Array, jax.Array, jax.Array]  # gate [E, D, F], up [E, D, F], down [E, F, D]


def route(logits_NE: jax.Array, chosen: int, normalised: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(probabilities [N, E] of all experts, weights [N, K] and numbers [N, K] of the chosen ones)."""
    probability_NE = jax.nn.softmax(logits_NE.astype(jnp.promote_types(logits_NE.dtype, jnp.float32)))
    weight_NK, expert_NK = jax.lax.top_k(probability_NE, chosen)
    if normalised:
        weight_NK = weight_NK / weight_NK.sum(axis=1, keepdims=True)
    return probability_NE, weight_NK, expert_NK


def all_experts(x_ND: jax.Array, weight_NK: jax.Array, expert_NK: jax.Array, experts: Experts) -> jax.Array:
    """Every expert on every row, weighted: E / K times the FLOPs, without moving rows."""
    gate_EDF, up_EDF, down_EFD = experts
    one_hot_NKE = jax.nn.one_hot(expert_NK, len(gate_EDF), dtype=weight_NK.dtype)
    weight_EN = jnp.einsum("nk,nke->en", weight_NK, one_hot_NKE).astype(x_ND.dtype)
    h_ENF = nn.silu(jnp.einsum("nd,edf->enf", x_ND, gate_EDF)) * jnp.einsum("nd,edf->enf", x_ND, up_EDF)
    return jnp.einsum("enf,efd->nd", h_ENF * weight_EN[:, :, None], down_EFD)


def apply_experts(x_ND: jax.Array, weight_NK: jax.Array, expert_NK: jax.Array, experts: Experts) -> jax.Array:
    """The weighted sum of the chosen experts, [N, D], by the fastest way."""
    if len(experts[0]) <= expert_NK.shape[1]:
        return all_experts(x_ND, weight_NK, expert_NK, experts)
    # On XLA's CPU backend a ragged product is a masked dense one: experiments/benchmarks/experts.py.
    chosen = blocked_experts if platform() == "cpu" else chosen_experts
    return on_every_device(chosen, x_ND, weight_NK, expert_NK, experts)


def on_every_device(function: Callable, x_ND: jax.Array, weight_NK, expert_NK, experts: Experts) -> jax.Array:
    """Maps a function over every device's rows and part of the experts' neurons, so that each sorts its own rows."""
    mesh = current_mesh()
    if mesh is None:
        return function(x_ND, weight_NK, expert_NK, experts)
    split = mesh.shape["tensor"] > 1 and experts[0].shape[2] % mesh.shape["tensor"] == 0
    wide, tall = (
        (PartitionSpec(None, None, "tensor"), PartitionSpec(None, "tensor")) if split else (PartitionSpec(),) * 2
    )

    def part(x_ND, weight_NK, expert_NK, experts):
        y_ND = function(x_ND, weight_NK, expert_NK, experts)
        return jax.lax.psum(y_ND, "tensor") if split else y_ND

    rows = PartitionSpec() if x_ND.shape[0] % batch_parts(mesh) else PartitionSpec(BATCH)
    specs = (rows, rows, rows, (wide, wide, tall))
    return jax.shard_map(part, in_specs=specs, out_specs=rows, check_vma=False)(x_ND, weight_NK, expert_NK, experts)


class Moe(nn.Module):
    """The router and its experts."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_ND, context: Context):
        """[B x T, D] -> ([B x T, D], {"load": [E], "probability": [E], "entropy": []}).

        Over tokens, load is the mean number of choices of an expert, probability its mean probability, and entropy that
        of all probabilities in nats.
        """
        axis = experts_of(self.config)
        chosen = getattr(self.config, axis.chosen)
        logits_NE = dense(x_ND, weight(self, "router"))
        probability_NE, weight_NK, expert_NK = route(logits_NE, chosen, axis.normalises(self.config))
        experts = weight(self, "gate"), weight(self, "up"), weight(self, "down")
        y_ND = apply_experts(x_ND, weight_NK, expert_NK, experts)
        load_E = jnp.bincount(expert_NK.reshape(-1), length=logits_NE.shape[1]) / len(x_ND)
        said = {"load": load_E.astype(probability_NE.dtype), "probability": probability_NE.mean(axis=0)}
        constant_NE = jax.lax.stop_gradient(probability_NE)
        said["entropy"] = -jnp.mean(jnp.sum(jax.scipy.special.xlogy(constant_NE, constant_NE), axis=1))
        return (y_ND + self._shared(x_ND) if has(self, "shared_down") else y_ND), said

    def _shared(self, x_ND):
        """The expert of every token, weighed by a sigmoid if it has a router."""
        gate_NF, up_NF = (dense(x_ND, weight(self, f"shared_{name}")) for name in ("gate", "up"))
        y_ND = dense(nn.silu(gate_NF) * up_NF, weight(self, "shared_down"))
        return nn.sigmoid(dense(x_ND, weight(self, "shared_router"))) * y_ND if has(self, "shared_router") else y_ND


def experts_of(config: DecoderConfig) -> Axis:
    """The axis of experts."""
    return config.architecture.of_kind(Kind.EXPERTS)[0]


def balance_loss(config: Any, said: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The load-balancing loss of Switch (arXiv 2101.03961, eq. 4) over all layers, times its coefficient.

    E sum_e f_e P_e with load f and probability P, means over layers and tokens; K for an even load.
    """
    load_E, probability_E = said["load"].mean(axis=0), said["probability"].mean(axis=0)
    balance = len(load_E) * jnp.sum(load_E * probability_E)
    return {"balance_loss": config.router_aux_loss * balance}


def router_metrics(config: Any, said: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The largest and the smallest load of an expert in any layer over the mean load, and the entropy in nats a token.

    An even load is 1 and 1; a dead expert has 0; log(experts) is the entropy of a router that knows nothing.
    """
    load_LE = said["load"] / said["load"].mean(axis=1, keepdims=True)
    return {"load_max": load_LE.max(), "load_min": load_LE.min(), "entropy": said["entropy"].mean()}


def check_mixture(config: Any) -> None:
    """Raises InputError unless the fields of a mixture are in range."""
    config._check_integers("experts", "experts_per_token")
    config._check_flags("normalised")
    if config.experts_per_token > config.experts:
        raise must_be("model.experts_per_token", f"<= model.experts, {config.experts}", config.experts_per_token)
    if config.router_aux_loss != 0:
        config._check_numbers("router_aux_loss")


_EXPERTS = (
    WeightSpec("router", "embed> >experts", Role.ROUTER),
    WeightSpec("gate", "experts: embed> >mlp"),
    WeightSpec("up", "experts: embed> >mlp"),
    WeightSpec("down", "experts: mlp> >stream"),
)
ROUTED = Branch("moe", Moe, _EXPERTS, losses=balance_loss, metrics=router_metrics, memory=no_memory)

# An expert that every token gets, and the sigmoid that may weigh it (Qwen2-MoE): no axes where their sizes are 0.
SHARED = Axis("shared_mlp", Kind.INNER, mesh="tensor", zero_reads=True), Axis("shared_router", Kind.FIXED)


def _has_shared(config: Any) -> bool:
    return config.shared_mlp > 0


def _has_shared_router(config: Any) -> bool:
    return config.shared_router


MOE = dataclasses.replace(
    ROUTED,
    weights=(
        *_EXPERTS,
        WeightSpec("shared_gate", "embed> >shared_mlp", present=_has_shared),
        WeightSpec("shared_up", "embed> >shared_mlp", present=_has_shared),
        WeightSpec("shared_down", "shared_mlp> >stream", present=_has_shared),
        WeightSpec("shared_router", "embed> >shared_router", Role.ROUTER, present=_has_shared_router),
    ),
)
