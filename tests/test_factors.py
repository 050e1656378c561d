"""Declared factors and norms after branches: growth undoes what changes, and claims only what it undid."""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import KEY, TOKENS, layer, noisy, rms

from growlm.growth import claim, plan_growth
from growlm.growth.expand import grow_params
from growlm.models import (
    Architecture,
    Axis,
    Branch,
    DecoderConfig,
    Kind,
    Norm,
    NormKind,
    Role,
    Weight,
    WeightSpec,
    apply,
)
from growlm.models.architecture import head, look_up
from growlm.models.mlp import Mlp


def embed_scale(config):
    return config.embed**0.5


def per_layer(config):
    return tuple(1 / (2 + layer + config.layers) for layer in range(config.layers))


def norm_scale(config):
    return 3 / config.embed


def logit_scale(config):
    return 2 / (config.embed + config.layers)


def architecture_of(norm, after):
    """An MLP alone, with every factor there is, and with or without a norm after it."""

    @dataclasses.dataclass(frozen=True)
    class Config(DecoderConfig):
        layers: int
        embed: int
        mlp: int
        vocab: int = 17
        tied: bool = False
        norm_eps: float = 1e-3
        architecture: ClassVar[Architecture]

    weights = (
        WeightSpec("up", "read> >mlp"),
        WeightSpec("up_bias", ">mlp", Role.BIAS),
        WeightSpec("down", f"mlp> >{'added' if after else 'stream'}"),
        WeightSpec("down_bias", f">{'added' if after else 'stream'}", Role.BIAS),
    )
    branch = Branch(
        "mlp",
        partial(Mlp, activation=jax.nn.relu),
        weights,
        reads="read",
        writes="added" if after else "",
        scale=per_layer,
        norm_scale=norm_scale,
    )
    return Architecture(
        name="factors",
        config=Config,
        axes=(
            Axis("layers", Kind.STACK),
            Axis("stream", Kind.STREAM, "embed"),
            Axis("read", Kind.READ, "embed", of="stream"),
            Axis("final", Kind.READ, "embed", of="stream"),
            *(Axis("added", Kind.NORMED, "embed"),) * after,
            Axis("mlp", Kind.INNER),
            Axis("vocab", Kind.VOCAB),
        ),
        period=((branch,),),
        norm=norm,
        embed=lambda weights, config, tokens, positions=None: look_up(weights, config, tokens) * embed_scale(config),
        embed_scale=embed_scale,
        head=head(present=lambda config: not config.tied),
        logit_scale=logit_scale,
        shared=("tied",),
    )


def forward(config, params):
    """In NumPy."""
    norm, blocks = config.architecture.norm, params["blocks"]

    def normed(y, weights):
        if norm.kind is NormKind.LAYER:
            return layer(y, config.norm_eps, weights)
        return rms(y, config.norm_eps, weights.get("scale", 1) + (norm.offset if norm.scale else 0))

    x = params["embedding"][TOKENS] * embed_scale(config)
    for number in range(config.layers):
        block = jax.tree.map(lambda leaf, number=number: leaf[number], blocks)
        mlp = block["mlp"]
        h = norm_scale(config) * normed(x, block.get("mlp_norm", {})) @ mlp["up"] + mlp["up_bias"]
        y = np.maximum(h, 0) @ mlp["down"] + mlp["down_bias"]
        y = normed(y, block["mlp_post_norm"]) if "mlp_post_norm" in block else y
        x = x + per_layer(config)[number] * y
    x = normed(x, params.get("final_norm", {}))
    return logit_scale(config) * x @ (params["embedding"].T if config.tied else params["head"])


def difference(source, target, operator="direct", **options):
    """Of logits, relative to the largest; and whether none is claimed."""
    params, growth = noisy(source), plan_growth(operator, source, target, KEY, **options)
    before, after = forward(source, params), forward(target, grow_params(growth, source, target, params, KEY))
    return np.abs(after - before).max() / np.abs(before).max(), claim(growth, source, target)


NORMS = {
    "rms": Norm(NormKind.RMS),
    "gemma": Norm(NormKind.RMS, offset=1.0),
    "no gain": Norm(NormKind.RMS, scale=False),
    "layer": Norm(NormKind.LAYER, bias=True),
}
SIZES = {"layers": 2, "embed": 4, "mlp": 5}
ARCHITECTURES = {
    (name, after): architecture_of(norm, after) for name, norm in NORMS.items() for after in (False, True) if norm.scale
}
ARCHITECTURES["no gain", False] = architecture_of(NORMS["no gain"], False)


GROWTHS = {
    "deeper": {"layers": 5},
    "twice as wide": {"embed": 8, "mlp": 10},
    "wider": {"embed": 7},
    "both": {"layers": 4, "embed": 8, "mlp": 9},
}
COPIES, ZEROS = {"operator": "direct", "zero_residual": True}, {"operator": "zero"}


def lost(name, after, tied, sizes, options):
    """Whether uneven copies or a norm after a branch move the mean, or a tied head has no gain before it."""
    wider = sizes.get("embed", 4)
    uneven = wider % 4 != 0 if options is COPIES else after and wider != 4
    return (name == "layer" and uneven) or (name == "no gain" and tied)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("name", "after"), ARCHITECTURES)
def test_growth_undoes_every_factor_that_changes(name, after, tied, monkeypatch):
    monkeypatch.setattr(Weight, "initial", lambda weight, key, config, whole: np.ones(weight.shape(config)))
    source = ARCHITECTURES[name, after].config(**SIZES, tied=tied)
    for sizes in GROWTHS.values():
        for options in (COPIES, ZEROS):
            logits, (claims, reason) = difference(source, dataclasses.replace(source, **sizes), **options)
            assert claims is bool(logits < 1e-12), (sizes, options, logits, reason)
            assert claims is not lost(name, after, tied, sizes, options), (sizes, options, reason)


@pytest.mark.parametrize(("name", "after"), [("gemma", True), ("layer", False)])
def test_the_model_in_numpy_is_growlms(name, after):
    config = ARCHITECTURES[name, after].config(**SIZES, tied=True)
    with jax.enable_x64(True):
        params = noisy(config)
        logits = apply(config, params, jnp.asarray(TOKENS, jnp.int32), dtype=jnp.float64)
    np.testing.assert_allclose(logits, forward(config, params), rtol=1e-12)


def test_a_norm_after_a_branch_needs_a_gain():
    with pytest.raises(AssertionError, match="a norm after a branch needs a gain"):
        architecture_of(NORMS["no gain"], after=True).config(**SIZES).architecture.weights  # noqa: B018
