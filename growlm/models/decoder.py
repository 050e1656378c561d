"""The decoder of every architecture: embedding, a scan over periods of branches, last norm, head.

Shape suffixes: B batch, T positions, D embed, V vocab, L periods of layers, N = B x T rows.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from growlm.errors import InputError, unknown
from growlm.models.architecture import MEMORY, Branch, DecoderConfig, Params, check_params, nest
from growlm.models.axes import multiply
from growlm.models.layers import Context, NormLayer, weight
from growlm.models.loss import Teacher, cross_entropy, logits
from growlm.models.remat import REMAT_POLICIES, policy_of
from growlm.models.sharding import by_batch

Tables = dict[str, Any]  # branch name -> its tables


class OfLayer(NamedTuple):
    """What of a branch depends on the layer, each an array [layers, ...] or None; see `Branch`.

    `number` is the layer's own in its scan, where there is a past.
    """

    variant: Any = None
    scale: Any = None
    norm_scale: Any = None
    number: Any = None


def of_layers(config: DecoderConfig) -> dict[str, OfLayer]:
    """For every branch what depends on the layer. Factors that are one for all layers are numbers of the config."""

    def each(values: Any) -> Any:
        return None if values is None or np.ndim(values) == 0 else jnp.asarray(values)

    def factor(multiplier: Any) -> Any:
        return each(np.asarray(multiply(multiplier, config), np.float64))

    return {
        branch.name: OfLayer(
            None if branch.variants is None else each(np.asarray(branch.variants(config), np.int32)),
            factor(branch.scale),
            factor(branch.norm_scale),
        )
        for branch in config.architecture.branches
    }


def _run(module: nn.Module, branch: Branch, x_ND, context: Context, layer: OfLayer, kept: Any = None):
    """What a branch, of which all layers keep `kept`, adds to the stream, and its auxiliary dict."""
    config, dtype = module.config, module.dtype
    architecture = config.architecture

    def times(y_ND, multiplier, of_layer):
        factor = multiply(multiplier, config) if of_layer is None else of_layer
        return y_ND if isinstance(factor, float) and factor == 1 else y_ND * jnp.asarray(factor, dtype)

    if branch.reads != architecture.stream.name:
        x_ND = NormLayer(config, dtype, architecture.norm, name=f"{branch.name}_norm")(x_ND)
    x_ND = times(x_ND, branch.norm_scale, layer.norm_scale)
    past = context.past and context.past._replace(kept=kept, layer=layer.number)
    context = context._replace(tables=context.tables[branch.name], variant=layer.variant, past=past)
    added_ND, said = branch.module(config=config, dtype=dtype, name=branch.name)(x_ND, context)
    if branch.writes:
        added_ND = NormLayer(config, dtype, architecture.norm, name=f"{branch.name}_post_norm")(added_ND)
    return times(added_ND, branch.scale, layer.scale), said


class Period(nn.Module):
    """One period of branches. The branches of one step read one stream."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, carry, context: Context, layer: dict[str, OfLayer], scale=None):
        """(the stream [B x T, D], what all layers keep by branch) -> (the same, auxiliary dicts by branch).

        `scale` multiplies what the period adds to the stream. What is kept is carried from layer to layer, so that each
        writes the new positions in their places, where a scan's output would be a copy of all for every token.
        """
        x_ND, kept = by_batch(carry[0]), carry[1]
        y_ND, auxiliary = x_ND, {}
        for step in self.config.architecture.period:
            before_ND = y_ND
            for branch in step:
                name = branch.name
                added_ND, said = _run(self, branch, before_ND, context, layer[name], kept.get(name))
                y_ND = y_ND + added_ND
                kept = kept | {name: said.pop(MEMORY)} if MEMORY in said else kept
                auxiliary |= {name: said} if said else {}
        y_ND = y_ND if scale is None else x_ND + scale.astype(self.dtype) * (y_ND - x_ND)
        return (y_ND, kept), auxiliary


class _Alone(nn.Module):
    """One branch, at the path of its weights within `blocks`."""

    config: DecoderConfig
    dtype: Any
    branch: str

    @nn.compact
    def __call__(self, x_ND, context: Context, layer: OfLayer):
        branch = next(one for one in self.config.architecture.branches if one.name == self.branch)
        return _run(self, branch, x_ND, context, layer)[0]


class _Named(nn.Module):
    """`_Alone` at the path `blocks`."""

    config: DecoderConfig
    dtype: Any
    branch: str

    @nn.compact
    def __call__(self, x_ND, context: Context, layer: OfLayer):
        return _Alone(self.config, self.dtype, self.branch, name="blocks")(x_ND, context, layer)


def apply_branch(
    config: DecoderConfig, name: str, layer: int, params: Params, x_ND: jax.Array, tokens_BT: jax.Array
) -> jax.Array:
    """What one branch of one layer adds to the stream, for models that are never whole in memory.

    `params` are the branch's part of `blocks` without the layer axis: {"attn_norm": ..., "attn": ...} for "attn".
    """
    return _apply_branch(
        config, name, jax.tree.map(lambda x: x[layer], of_layers(config)[name]), params, x_ND, tokens_BT
    )


@partial(jax.jit, static_argnums=(0, 1))
def _apply_branch(config: DecoderConfig, name: str, layer: OfLayer, params: Params, x_ND, tokens_BT) -> jax.Array:
    context = Context(tokens_BT, None, tables_of(config, tokens_BT.shape[1]))
    return _apply_module(_Named(config, x_ND.dtype, name), {"params": {"blocks": params}}, x_ND, context, layer)


def _apply_module(module: nn.Module, variables: dict[str, Any], *arguments: Any, method: str | None = None) -> Any:
    """Linen's `apply`, whose declared type allows for mutable variables, which no module here has."""
    return module.apply(variables, *arguments, method=method)


def tables_of(config: DecoderConfig, length: int) -> Tables:
    """The tables that branches compute once for all layers, by the branch's name."""
    return {branch.name: branch.tables(config, length) for branch in config.architecture.branches}


def documents(tokens_BT: jax.Array, document_end: int) -> jax.Array:
    """int32[B, T]: the number of each position's document in its row. An end token belongs to the document it ends."""
    ends_BT = (tokens_BT == document_end).astype(jnp.int32)
    return jnp.cumsum(ends_BT, axis=1) - ends_BT


class Decoder(nn.Module):
    """Tokens to hidden states, in three parts. Layers are a scan, so every leaf of a branch is [layers, ...].

    `length` is the number of layers that are scanned, some of the model's, whose weights alone are then given, and
    `unroll` how many are written out in one turn.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    length: int = 0
    unroll: int = 1

    def setup(self):
        """The layers, the last norm, and the weights outside of both by name."""
        norm, layers = "final_norm/", "blocks/"
        outside = [one.path for one in self.config.weights if not one.path.startswith((norm, layers))]
        self.outside = {path: weight(self, path) for path in outside}
        self.blocks = self._layers()
        self.final_norm = NormLayer(self.config, self.dtype, self.config.architecture.last_norm)

    def embed(self, tokens_BT, *position_BT):
        """int[B, T] -> the stream [B x T, D] before the first layer. Positions are 0, 1, ... if none are given."""
        return by_batch(self.config.architecture.embed(self.outside, self.config, tokens_BT, *position_BT))

    def layers(self, carry, context: Context, of_layer: dict[str, OfLayer], scale_L=None):
        """The carry of `Period` -> (that after the scanned layers, auxiliary dicts stacked over layers)."""
        return self.blocks(carry, context, of_layer, scale_L)

    def head(self, x_ND):
        """The stream [B x T, D] after the last layer -> (hidden [B x T, D], head [D, V]); logits are their product."""
        architecture = self.config.architecture
        head_DV = self.outside["embedding"].T if architecture.tied(self.config) else self.outside["head"]
        x_ND = self.final_norm(x_ND)
        scale = multiply(architecture.logit_scale, self.config)
        return x_ND if scale == 1 else x_ND * jnp.asarray(scale, self.dtype), head_DV

    def _layers(self) -> nn.Module:
        period = Period
        if (policy := policy_of(self.remat)) is not None:
            # Without a loop between them, a compiler may take what is computed again for what there is already.
            period = nn.remat(Period, policy=policy, prevent_cse=self.unroll >= self.length)
        scanned = nn.scan(
            period,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0, 0),  # pyright: ignore[reportArgumentType]: declared as int alone
            length=self.length,
            unroll=self.unroll,
        )
        return scanned(self.config, self.dtype)


def with_depth(config: DecoderConfig, depth: int) -> DecoderConfig:
    """The config with this number of periods of layers."""
    return dataclasses.replace(config, **{config.architecture.stack.field: depth})


def _check_tokens(config: DecoderConfig, tokens: jax.Array, least: int) -> None:
    """`least`: 1, or 2 where the last token is only predicted."""
    shape, dtype = np.shape(tokens), jnp.asarray(tokens).dtype
    if len(shape) != 2 or not jnp.issubdtype(dtype, jnp.integer) or shape[0] < 1 or shape[1] < least:
        raise InputError(f"tokens must be integers [batch >= 1, length >= {least}], got {dtype}{list(shape)}")
    config.check_length("the length of tokens", shape[1] + 1 - least)


def _check_options(config: DecoderConfig, remat: str, block_scale: Any, frozen_layers: int) -> None:
    if remat not in REMAT_POLICIES:
        raise unknown("remat policy", remat, REMAT_POLICIES)
    whole, depth = isinstance(frozen_layers, int) and not isinstance(frozen_layers, bool), config.depth
    if not whole or not 0 <= frozen_layers <= depth:
        raise InputError(f"frozen_layers must be an integer from 0 to {depth}, got {frozen_layers!r}")
    if block_scale is not None:
        shape, dtype = jnp.shape(block_scale), jnp.result_type(block_scale)
        if shape != (depth,) or not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(f"block_scale must be floats [{depth}], one for each layer, got {dtype}{list(shape)}")


@dataclasses.dataclass(frozen=True)
class Pass:
    """Static arguments of a forward pass; see `losses`. unroll: layers in one turn of a scan over them."""

    dtype: Any = jnp.float32
    remat: str = "none"
    frozen_layers: int = 0
    document_end: int | None = None
    unroll: int = 1


def _hidden(
    config: DecoderConfig, params: Params, tokens_BT: jax.Array, how: Pass, scale_L: jax.Array | None
) -> tuple[jax.Array, jax.Array, dict]:
    """(hidden states, head, auxiliary dicts stacked over layers) of whole texts."""
    document_BT = None if how.document_end is None else documents(tokens_BT, how.document_end)
    context = Context(tokens_BT, document_BT, tables_of(config, tokens_BT.shape[1]))
    x_ND, head_DV, said, _ = hidden_in(config, params, context, how, scale_L)
    return x_ND, head_DV, jax.tree.map(lambda *parts: jnp.concatenate(parts), *said)


def hidden_in(
    config: DecoderConfig,
    params: Params,
    context: Context,
    how: Pass,
    scale_L: jax.Array | None,
    kept: Sequence[dict[str, Any]] | None = None,
) -> tuple[jax.Array, jax.Array, list[dict], list[dict[str, Any]]]:
    """(hidden states, head, auxiliary dicts of each scan, what each keeps now), with the frozen layers as constants.

    kept: by scan and branch what is kept of the context's past, where it has one (`growlm.models.memory`).
    """
    architecture, frozen = config.architecture, how.frozen_layers
    _check_options(config, how.remat, scale_L, frozen)
    check_params(config, params)
    if frozen:
        lookups = {spec.name: jax.lax.stop_gradient(params[spec.name]) for spec in architecture.lookups}
        params = {**params, **lookups}  # as a tied head too
    stacked = params["blocks"], of_layers(config), scale_L
    places = [] if context.past is None else [context.past.position_BT(context.tokens_BT.shape[1])]
    x_ND = _call(Decoder(config, how.dtype), params, "embed", context.tokens_BT, *places)
    entry_ND, said, keeps = x_ND, [], []
    for number, run in enumerate(_runs(config, frozen)):
        blocks, of_layer, scale = jax.tree.map(itemgetter(run.layers), stacked)
        if kept is not None:
            of_layer = {name: one._replace(number=jnp.arange(run.count(config))) for name, one in of_layer.items()}
        # A scan differentiates through all of its layers or none, so frozen layers have scans of their own.
        blocks, scale = jax.lax.stop_gradient((blocks, scale)) if run.frozen else (blocks, scale)
        part = Decoder(config, how.dtype, how.remat, run.count(config), how.unroll)
        entry_ND = x_ND if run.enters else entry_ND
        carry = x_ND, {} if kept is None else kept[number]
        (x_ND, keep), auxiliary = _call(part, {**params, "blocks": blocks}, "layers", carry, context, of_layer, scale)
        said, keeps = [*said, auxiliary], [*keeps, keep]
        if run.boundary:
            assert architecture.boundary is not None, "sections with a boundary need one"
            x_ND = architecture.boundary(config, x_ND, entry_ND)
    x_ND, head_DV = _call(Decoder(config, how.dtype), params, "head", x_ND)
    return x_ND, head_DV, said, keeps


def depths(config: DecoderConfig) -> list[int]:
    """The numbers of layers of the scans of `hidden_in`, in their order."""
    return [run.count(config) for run in _runs(config, 0)]


class _Run(NamedTuple):
    """One scan: over which layers, whether they are frozen, enter the first section with a boundary, end a section."""

    layers: slice
    frozen: bool
    enters: bool
    boundary: bool

    def count(self, config: DecoderConfig) -> int:
        """The number of its layers."""
        return len(range(config.depth)[self.layers])


def _runs(config: DecoderConfig, frozen: int) -> list[_Run]:
    """The scans of a forward pass, in order: one for every pass through a section, two where it is frozen in part."""
    runs, begin, entered = [], 0, False
    for section in config.architecture.sections(config):
        end, cut = begin + section.layers, min(max(frozen, begin), begin + section.layers)
        parts = [slice(*part) for part in ((begin, cut), (cut, end)) if part[0] < part[1]] or [slice(begin, end)]
        for _ in range(section.passes):
            for part in parts:
                first = section.boundary and not entered
                last = section.boundary and part is parts[-1]
                runs.append(_Run(part, part.stop <= frozen and frozen > 0, first, last))
                entered = entered or section.boundary
        begin = end
    return runs


def _call(module: nn.Module, params: Params, method: str, *arguments: Any) -> Any:
    return _apply_module(module, {"params": params}, *arguments, method=method)


@partial(jax.jit, static_argnames="config")
def _init(config: DecoderConfig, key: jax.Array) -> Params:
    return nest({weight.path: weight.initial(weight.key(key), config, whole=True) for weight in config.weights})


def init(config: DecoderConfig, key: jax.Array) -> Params:
    """Initial parameters: a nested dict of float32 arrays in the declared shapes, weights of layers as [layers, ...].

    Standard deviations are sqrt(2 / (5 fan_in)) for matrices, as in the paper's code (arXiv 2405.15319, lit_gpt
    `_init_weights`), 1 / sqrt(number of branches) of that for residual writers (GPT-2), and 0.25 / sqrt(embed) for
    embedding and head, so that the initial loss is log(vocab). Gains are 1, biases 0. A weight draws from a key that
    depends on its path alone.
    """
    return _init(config, key)


def apply(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    *,
    dtype: Any = jnp.float32,
    remat: str = "none",
    block_scale: jax.Array | None = None,
) -> jax.Array:
    """Logits of the next token at every position.

    Args:
      config: the model's shape.
      params: from `init`.
      tokens: int32[batch, length], from 0 to config.vocab - 1 (not checked, since that would fetch them).
      dtype: the compute dtype of the layers, float32 or bfloat16 (float64 under jax_enable_x64).
      remat: a name in REMAT_POLICIES.
      block_scale: float[layers], or None for ones: layer i computes x + block_scale[i] * (block(x) - x).

    Returns:
      float32[batch, length, vocab] (float64 if that is the compute dtype).

    Raises:
      InputError: tokens or block_scale of a wrong rank, size or type, a tree that is not this model's, more tokens than
        positions, an unknown remat policy.
    """
    _check_tokens(config, tokens, 1)
    return _apply(config, params, tokens, Pass(jnp.dtype(dtype), remat), block_scale)


@partial(jax.jit, static_argnames=("config", "how"))
def _apply(
    config: DecoderConfig, params: Params, tokens: jax.Array, how: Pass, block_scale: jax.Array | None
) -> jax.Array:
    x_ND, head_DV, _ = _hidden(config, params, tokens, how, block_scale)
    cap = config.architecture.logit_cap(config)
    return logits(x_ND, head_DV, cap).reshape(*tokens.shape, -1)


def hidden_states(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    *,
    dtype: Any = jnp.float32,
    block_scale: jax.Array | None = None,
    document_end: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(hidden states [batch x length, embed], head [embed, vocab]), in `dtype`; `loss.logits` of them are the logits.

    For logits of some positions only. Arguments and errors are those of `apply`, and of `losses` for document_end.
    """
    _check_tokens(config, tokens, 1)
    return _hidden(config, params, tokens, Pass(dtype, document_end=document_end), block_scale)[:2]


def next_token_loss(config: DecoderConfig, params: Params, tokens: jax.Array, **options: Any) -> jax.Array:
    """Mean cross-entropy of tokens[:, 1:], in nats a token: `losses` without the auxiliary ones, with its options."""
    return losses(config, params, tokens, **options)[0]


def losses(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    *,
    dtype: Any = jnp.float32,
    remat: str = "none",
    block_scale: jax.Array | None = None,
    frozen_layers: int = 0,
    document_end: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean cross-entropy of the next token, and auxiliary losses of branches.

    Args:
      config, params, dtype, remat, block_scale: as in `apply`.
      tokens: int[batch, length + 1].
      frozen_layers: the number of first layers that are constants, with the embedding: their gradients are zero and
        cost nothing. 0 trains everything; config.layers the final norm and an untied head.
      document_end: the token that ends a document; positions then attend to their own document alone. None: to all
        earlier positions, as in the paper. In both cases an end token predicts the first token of the next document.

    Returns:
      (a float32 scalar in nats a token, auxiliary scalars by name, such as the load-balancing loss of a mixture times
      its coefficient). Softmax and loss are in float32, or in float64 if that is the compute dtype.

    Raises:
      InputError: as `apply`, and for frozen_layers out of range.
    """
    return measured(config, params, tokens, Pass(dtype, remat, frozen_layers, document_end), block_scale)[:2]


def teacher_of(
    config: DecoderConfig, params: Params, tokens: jax.Array, how: Pass, weight: Any, temperature: float
) -> Teacher:
    """A model as the teacher of another one on int[batch, length + 1] tokens; see `Teacher`."""
    x_NE, head_EV, _ = _hidden(config, params, tokens[:, :-1], how, None)
    return Teacher(x_NE, head_EV, weight, config.architecture.logit_cap(config), temperature)


def measured(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    how: Pass,
    block_scale: Any = None,
    weights: jax.Array | None = None,
    teacher: Teacher | None = None,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """What `losses` returns, and what branches say of themselves: scalars by the branch's name and their own.

    weights: of the predicted tokens [batch, length], and teacher: as in `cross_entropy`.
    """
    _check_tokens(config, tokens, 2)
    x_ND, head_DV, auxiliary = _hidden(config, params, tokens[:, :-1], how, block_scale)
    added: dict[str, jax.Array] = {}
    metrics: dict[str, jax.Array] = {}
    for branch in config.architecture.branches:
        said = auxiliary.get(branch.name) if config.depth else None
        if said is not None and branch.losses is not None:
            added |= branch.losses(config, said)
        if said is not None and branch.metrics is not None:
            metrics |= {f"{branch.name}_{name}": value for name, value in branch.metrics(config, said).items()}
    loss = cross_entropy(x_ND, head_DV, tokens[:, 1:], config.architecture.logit_cap(config), weights, teacher)
    return loss, added, metrics
