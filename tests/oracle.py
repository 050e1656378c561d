"""Decoders in NumPy that share no line with growlm.models, and what growth does to its logits."""

import math

import jax
import numpy as np
from trees import optimised

import growlm
from growlm.growth import claim, plan_growth
from growlm.growth.expand import grow_params
from growlm.growth.masks import CLOSED
from growlm.growth.plan import provenance_of
from growlm.models import declared, nest

SMALL = growlm.ModelConfig(layers=2, embed=12, heads=4, kv_heads=2, head_dim=4, mlp=10, vocab=17)
KEY = jax.random.key(7)
TOKENS = np.random.default_rng(0).integers(SMALL.vocab, size=(2, 9))


def softmax(x):
    y = np.exp(x - x.max(-1, keepdims=True))
    return y / y.sum(-1, keepdims=True)


def rms(y, eps, gain):
    return y / np.sqrt(np.mean(y * y, -1, keepdims=True) + eps) * gain


def layer(y, eps, weights):
    centred = y - y.mean(-1, keepdims=True)
    return rms(centred, eps, weights["scale"]) + weights.get("bias", 0)


def turn(y, theta, rotated):
    """Rotary positions on the first coordinates of every head of [B, T, H, h]."""
    half = rotated // 2
    angle = np.arange(y.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = y[..., :half], y[..., half:rotated]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, y[..., rotated:]], -1)


def attend(q, k, v, out):
    """Causal attention; heads of keys and values serve neighbouring query heads."""
    length, times = q.shape[1], q.shape[2] // k.shape[2]
    k, v = np.repeat(k, times, axis=2), np.repeat(v, times, axis=2)
    score = np.einsum("bthe,bshe->bhts", q, k) / np.sqrt(q.shape[-1])
    weight = softmax(np.where(np.tril(np.ones((length, length), bool)), score, -np.inf))
    return np.einsum("bhts,bshe,hed->btd", weight, v, out)


def project(y, attn, name):
    return np.einsum("btd,dhe->bthe", y, attn[name]) + attn.get(f"{name}_bias", 0)


def swiglu(y, mlp):
    gate = y @ mlp["gate"]
    return (gate / (1 + np.exp(-gate)) * (y @ mlp["up"])) @ mlp["down"]


def mixture(config, y, moe):
    """Of every row the most probable experts, one after the other, whose weights add up to 1 if they are normalised.

    Every row gets the shared expert, if there is one.
    """
    rows = y.reshape(-1, y.shape[-1])
    probability = softmax(rows @ moe["router"])
    best = np.argsort(-probability, axis=-1, kind="stable")[:, : config.experts_per_token]
    weight = np.take_along_axis(probability, best, -1)
    if config.normalised:
        weight /= weight.sum(-1, keepdims=True)
    of_expert = [swiglu(rows, {name: moe[name][e] for name in ("gate", "up", "down")}) for e in range(config.experts)]
    added = np.einsum("nk,nkd->nd", weight, np.stack(of_expert, 1)[np.arange(len(rows))[:, None], best])
    if "shared_down" in moe:
        shared = swiglu(rows, {name: moe[f"shared_{name}"] for name in ("gate", "up", "down")})
        added += shared / (1 + np.exp(-rows @ moe["shared_router"])) if "shared_router" in moe else shared
    return added.reshape(y.shape)


def rms_of_heads(z, eps, gain):
    """Of each head, or of all heads together."""
    return rms(z, eps, gain) if gain.ndim == 1 else rms(z.reshape(*z.shape[:2], -1), eps, gain.ravel()).reshape(z.shape)


def llama_block(config, block, x, tokens):
    attn, theta = block["attn"], config.rope_theta
    y = rms(x, config.norm_eps, block["attn_norm"]["scale"])
    q, k, v = (project(y, attn, name) for name in ("query", "key", "value"))
    q, k = (
        rms_of_heads(z, config.norm_eps, attn[f"{n}_norm"]) if f"{n}_norm" in attn else z
        for n, z in {"query": q, "key": k}.items()
    )
    x = x + attend(turn(q, theta, config.head_dim), turn(k, theta, config.head_dim), v, attn["out"])
    if "moe" in block:
        return x + mixture(config, rms(x, config.norm_eps, block["moe_norm"]["scale"]), block["moe"])
    return x + swiglu(rms(x, config.norm_eps, block["mlp_norm"]["scale"]), block["mlp"])


def gpt_neox_block(config, block, x, tokens):
    attn, mlp = block["attn"], block["mlp"]
    y, z = (layer(x, config.norm_eps, block[f"{name}_norm"]) for name in ("attn", "mlp"))
    q, k, v = (project(y, attn, name) for name in ("query", "key", "value"))
    q, k = (turn(heads, config.rope_theta, config.rotary_dim) for heads in (q, k))
    h = z @ mlp["up"] + mlp["up_bias"]
    h = h * (1 + _erf(h / np.sqrt(2))) / 2
    return x + attend(q, k, v, attn["out"]) + attn["out_bias"] + h @ mlp["down"] + mlp["down_bias"]


def own_block(config, block, x, tokens):
    attn, mlp = block["attn"], block["mlp"]
    y, z = (layer(x, config.norm_eps, block[f"{name}_norm"]) for name in ("attn", "mlp"))
    q, k, v = (project(y, attn, name) for name in ("query", "key", "value"))
    v = v + attn["value_embedding"][tokens]
    return x + attend(q, k, v, attn["out"]) + np.maximum(z @ mlp["up"], 0) ** 2 @ mlp["down"]


_erf = np.vectorize(math.erf, otypes=[float])
BLOCKS = dict.fromkeys(("llama", "mixtral", "olmoe"), llama_block) | {"gpt_neox": gpt_neox_block, "own": own_block}


def forward(config, params, tokens_BT, block_scale=None):
    """Logits in the parameters' precision. block_scale: of what each whole block adds to the stream."""
    name, final = config.architecture.name, params["final_norm"]
    x = params["embedding"][tokens_BT]
    if name == "own":
        x = x + params["positions"][: tokens_BT.shape[1]]
    for number in range(config.layers):
        block = jax.tree.map(lambda w: w[number], params["blocks"])  # noqa: B023
        after = BLOCKS[name](config, block, x, tokens_BT)
        x = after if block_scale is None else x + block_scale[number] * (after - x)
    x = layer(x, config.norm_eps, final) if name in ("gpt_neox", "own") else rms(x, config.norm_eps, final["scale"])
    return x @ (params["head"] if "head" in params else params["embedding"].T)


def noisy(config, dtype=np.float64):
    """Random parameters in which no gain is 1 and no bias 0. In NumPy: to compile `init` for every shape takes long."""
    rng = np.random.default_rng(3)

    def values(weight):
        return (weight.init == "ones") + (0.3 + weight.std(config)) * rng.standard_normal(weight.shape(config))

    return nest({weight.path: values(weight).astype(dtype) for weight in declared(config)})


def grown(config, target, operator, **options):
    with jax.enable_x64(True):
        params = noisy(config)
        with optimised("noise" in options):
            after = growlm.grow(params, config, target, operator, key=KEY, **options)
        return params, jax.tree.map(np.asarray, after)


def difference(config, target, operator, **options):
    """Largest logit difference on the source's vocabulary, under a mask of 0 if there is one, and what is claimed."""
    before, after = grown(config, target, operator, **options)
    growth, blocks = plan_growth(operator, config, target, KEY, **options), None
    if growth.masks:
        with jax.enable_x64(True):
            hidden = jax.jit(lambda tree: growth.masks.reparametrise(target, tree, provenance_of(growth), CLOSED))
            after, blocks = hidden(after)
            after, blocks = jax.tree.map(np.asarray, (after, blocks))
    return apart(config, before, target, after, blocks), claim(growth, config, target)[0]


def apart(config, before, target, after, blocks=None):
    """The largest difference of two models' logits on the first one's vocabulary, relative to the largest logit."""
    old = forward(config, before, TOKENS)
    logits = forward(target, after, TOKENS, blocks)[..., : config.vocab] - old
    return np.abs(logits).max() / max(1.0, np.abs(old).max())


def grown_in_numpy(config, target, operator, **options):
    """What `growlm.grow` makes in float64, and the growth, with nothing compiled: NumPy in, NumPy out."""
    params, growth = noisy(config), plan_growth(operator, config, target, KEY, **options)
    after = grow_params(growth, config, target, params, KEY)
    assert {type(leaf) for leaf in jax.tree.leaves(after)} == {np.ndarray}
    return params, after, growth


def difference_in_numpy(config, target, operator, **options):
    """As `difference`, and the growth."""
    before, after, growth = grown_in_numpy(config, target, operator, **options)
    blocks = None
    if growth.masks:
        after, blocks = growth.masks.reparametrise(target, after, provenance_of(growth), CLOSED)
    return apart(config, before, target, after, blocks), claim(growth, config, target)[0], growth
