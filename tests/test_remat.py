"""What the backward pass computes again, layers that are written out, and sums over rows."""

import dataclasses
import importlib
from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params
from trees import noisy, random_tokens

from growlm import ModelConfig
from growlm.models import REMAT_POLICIES, Gpt2Config, kernels, next_token_loss
from growlm.models.decoder import Pass, measured

SIZES = {"layers": 3, "embed": 16, "heads": 4, "head_dim": 8, "mlp": 24, "vocab": 40}
FULL = ModelConfig(**SIZES, kv_heads=2, qkv_bias=True, qk_norm=True)
GPT2 = Gpt2Config(**SIZES, positions=32)


@pytest.mark.parametrize("unroll", [2, 3, 7])
def test_layers_that_are_written_out_give_what_a_loop_gives(unroll):
    """Two of three layers in one turn and one alone, all of them, and more than there are; some are frozen."""
    config = dataclasses.replace(FULL, layers=3)
    params, tokens = noisy(config), random_tokens(config, 2, 9)

    @partial(jax.jit, static_argnums=1)
    def with_gradients(params, how):
        return jax.value_and_grad(lambda p: measured(config, p, tokens, how)[0])(params)

    for frozen in (0, 1):
        how = Pass(remat="full", frozen_layers=frozen)
        written_out = with_gradients(params, dataclasses.replace(how, unroll=unroll))
        chex.assert_trees_all_close(written_out, with_gradients(params, how), rtol=1e-5, atol=1e-7)


def test_what_attention_gives_is_kept_on_gpus_too(monkeypatch):
    """cuDNN's attention has no name there that a policy could keep: the forward kernel would be traced once more."""
    library = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(library, "check_cudnn_version", lambda: 91_900)
    monkeypatch.setattr(library, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(kernels, "_has_flash_attention", lambda: True)
    params, tokens = noisy(FULL), random_tokens(FULL, 2, 9)

    def forward_kernels(remat):
        loss_of = partial(next_token_loss, FULL, tokens=tokens, remat=remat, dtype=jnp.bfloat16)
        return str(jax.make_jaxpr(jax.grad(loss_of))(params)).count(" = dot_product_attention_fwd_wrapper[")

    assert [forward_kernels(remat) for remat in REMAT_POLICIES] == [1, 2, 1, 1, 2]


@pytest.mark.parametrize("config", [FULL, GPT2], ids=["llama", "gpt2"])
def test_gains_and_biases_have_gradients_that_are_summed_in_float32(config):
    params, tokens = noisy(config), random_tokens(config, 4, 17)
    loss_of = partial(next_token_loss, config, tokens=tokens, dtype=jnp.bfloat16)
    sums = list(sums_in(jax.make_jaxpr(jax.grad(loss_of))(params).jaxpr))
    assert sums
    assert not [one for one in sums if one.outvars[0].aval.dtype == jnp.bfloat16]


def sums_in(jaxpr):
    """The sums over all rows of a batch."""
    for equation in jaxpr.eqns:
        if (
            equation.primitive.name == "reduce_sum"
            and equation.invars[0].aval.size == 64 * equation.outvars[0].aval.size
        ):
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from sums_in(inner)
