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
    return rms(centred, eps, weights.get("scale", 1)) + weights.get("bias", 0)


def turn(y, theta, rotated):
    """Rotary positions on the first coordinates of every head of [B, T, H, h]."""
    half = rotated // 2
    angle = np.arange(y.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = y[..., :half], y[..., half:rotated]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, y[..., rotated:]], -1)


def attend(q, k, v, out, window=None, scalar=None, cap=None):
    """Causal attention; heads of keys and values serve neighbouring query heads."""
    length, times = q.shape[1], q.shape[2] // k.shape[2]
    k, v = np.repeat(k, times, axis=2), np.repeat(v, times, axis=2)
    score = np.einsum("bthe,bshe->bhts", q, k) / np.sqrt(scalar or q.shape[-1])
    score = score if cap is None else cap * np.tanh(score / cap)
    seen = np.tril(np.ones((length, length), bool)) & ~np.tril(np.ones((length, length), bool), -(window or length))
    weight = softmax(np.where(seen, score, -np.inf))
    return np.einsum("bhts,bshe,hed->btd", weight, v, out)


def project(y, attn, name):
    return np.einsum("btd,dhe->bthe", y, attn[name]) + attn.get(f"{name}_bias", 0)


def silu(y):
    return y / (1 + np.exp(-y))


def swiglu(y, mlp):
    return (silu(y @ mlp["gate"]) * (y @ mlp["up"])) @ mlp["down"]


def recur(u, dt, a, b, c, document):
    """The state-space model of Mamba-1, position by position, from a state of 0 in every document."""
    h, read = np.zeros((len(u), *a.shape), u.dtype), []
    for t in range(u.shape[1]):
        h[document[:, t] != document[:, max(t - 1, 0)]] = 0
        h = np.exp(dt[:, t, :, None] * a) * h + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
        read.append((h * c[:, t, None]).sum(-1))
    return np.stack(read, 1)


def mamba(y, weights, document=None):
    """A branch of Mamba-1. document: [B, T], the number of each position's document."""
    document = np.zeros(y.shape[:2]) if document is None else document
    x, u = y @ weights["input"], []
    for t in range(y.shape[1]):
        taps = enumerate(weights["conv"].T[::-1][: t + 1])  # the last is this position's
        seen = [(document[:, t - back] == document[:, t])[:, None] * x[:, t - back] * tap for back, tap in taps]
        u.append(silu(sum(seen) + weights["conv_bias"]))
    u = np.stack(u, 1)
    dt = np.logaddexp(0, u @ weights["dt_down"] @ weights["dt_up"] + weights["dt_bias"])
    read = recur(u, dt, -np.exp(weights["A_log"]), u @ weights["to_B"], u @ weights["to_C"], document)
    return ((read + weights["D_skip"] * u) * silu(y @ weights["gate"])) @ weights["out"]


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


def wider(config, field):
    """A size over that of the base."""
    return getattr(config, field) / (getattr(config, "base_widths", None) or {}).get(field, getattr(config, field))


def added_by_depth(config):
    base = getattr(config, "base_layers", None)
    return 1 if base is None else (config.layers / base) ** -config.depth_alpha


def llama_block(config, block, x, tokens):
    """`number`: of the layer, from 0, by which norms are scaled."""
    attn, theta, number = block["attn"], config.rope_theta, block["number"]
    added, scalar = added_by_depth(config), config.head_dim * wider(config, "head_dim")
    handed = (number + 1) ** -0.5 if getattr(config, "norm_scaling", False) else 1
    y = handed * rms(x, config.norm_eps, block["attn_norm"]["scale"])
    q, k, v = (project(y, attn, name) for name in ("query", "key", "value"))
    q, k = (
        rms_of_heads(z, config.norm_eps, attn[f"{n}_norm"]) if f"{n}_norm" in attn else z
        for n, z in {"query": q, "key": k}.items()
    )
    q, k = (turn(heads, theta, config.head_dim) for heads in (q, k))
    x = x + added * attend(q, k, v, attn["out"], scalar=scalar)
    if "moe" in block:
        return x + added * mixture(config, handed * rms(x, config.norm_eps, block["moe_norm"]["scale"]), block["moe"])
    return x + added * swiglu(handed * rms(x, config.norm_eps, block["mlp_norm"]["scale"]), block["mlp"])


def olmo_block(config, block, x, tokens):
    attn = block["attn"]
    y = layer(x, config.norm_eps, {})
    q, k, v = (project(y, attn, name) for name in ("query", "key", "value"))
    q, k = (turn(heads, config.rope_theta, config.head_dim) for heads in (q, k))
    x = x + attend(q, k, v, attn["out"])
    return x + swiglu(layer(x, config.norm_eps, {}), block["mlp"])


def window_of(config, block):
    """Of a layer that has one."""
    return config.sliding_window if (block["number"] + 1) % config.global_every else None


def olmo2_block(config, block, x, tokens):
    attn, eps = block["attn"], config.norm_eps
    q, k, v = (project(x, attn, name) for name in ("query", "key", "value"))
    q, k = (
        rms(z.reshape(*z.shape[:2], -1), eps, attn[f"{name}_norm"].reshape(-1)).reshape(z.shape)
        for name, z in {"query": q, "key": k}.items()
    )
    q, k = (turn(heads, config.rope_theta, config.head_dim) for heads in (q, k))
    y = attend(q, k, v, attn["out"], window_of(config, block))
    x = x + rms(y, eps, block["attn_post_norm"]["scale"])
    return x + rms(swiglu(x, block["mlp"]), eps, block["mlp_post_norm"]["scale"])


def geglu(y, mlp):
    gate = y @ mlp["gate"]
    return (gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) / 2 * (y @ mlp["up"])) @ mlp["down"]


def gemma_block(config, block, x, tokens):
    """Of Gemma 1, 2 and 3; a gain that is not there is one."""
    attn = block["attn"]

    def norm(y, gain):
        return y if gain is None else rms(y, config.norm_eps, 1 + gain)

    def of(name):
        return block.get(name, {}).get("scale")

    windowed = config.architecture.name != "gemma"
    window = window_of(config, block) if windowed else None
    theta = config.rope_theta if window is None else getattr(config, "local_rope_theta", config.rope_theta)
    y = norm(x, of("attn_norm"))
    q, k, v = (project(y, attn, name) for name in ("query", "key", "value"))
    q, k = (norm(z, attn.get(f"{name}_norm")) for name, z in {"query": q, "key": k}.items())
    q, k = (turn(heads, theta, config.head_dim) for heads in (q, k))
    scalar, cap = getattr(config, "query_scalar", None), getattr(config, "score_cap", None)
    x = x + norm(attend(q, k, v, attn["out"], window, scalar, cap), of("attn_post_norm"))
    return x + norm(geglu(norm(x, of("mlp_norm")), block["mlp"]), of("mlp_post_norm"))


def gpt_neox_block(config, block, x, tokens):
    attn, mlp = block["attn"], block["mlp"]
    y, z = (layer(x, config.norm_eps, block[f"{name}_norm"]) for name in ("attn", "mlp"))
    q, k, v = (project(y, attn, name) for name in ("query", "key", "value"))
    q, k = (turn(heads, config.rope_theta, config.rotary_dim) for heads in (q, k))
    h = z @ mlp["up"] + mlp["up_bias"]
    h = h * (1 + _erf(h / np.sqrt(2))) / 2
    return x + attend(q, k, v, attn["out"]) + attn["out_bias"] + h @ mlp["down"] + mlp["down_bias"]


def gpt2_block(config, block, x, tokens):
    attn, mlp = block["attn"], block["mlp"]
    y = layer(x, config.norm_eps, block["attn_norm"])
    x = x + attend(*(project(y, attn, name) for name in ("query", "key", "value")), attn["out"]) + attn["out_bias"]
    h = layer(x, config.norm_eps, block["mlp_norm"]) @ mlp["up"] + mlp["up_bias"]
    h = h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))) / 2
    return x + h @ mlp["down"] + mlp["down_bias"]


def pattention(y, keys, values, tau):
    score = np.tensordot(y, keys, keys.ndim - 1)
    score = score * tau / np.sqrt((score**2).sum(-1, keepdims=True))
    return np.tensordot(score * (1 + _erf(score / np.sqrt(2))) / 2, values, 1)


def tokenformer_block(config, block, x, tokens):
    attn, mlp, plain = block["attn"], block["mlp"], {"scale": 1}
    scale = [
        np.sqrt(size) if tau is None else tau
        for size, tau in zip(
            (config.qkv_slots, config.out_slots, config.mlp_slots),
            (config.qkv_scale, config.out_scale, config.mlp_scale),
            strict=True,
        )
    ]
    y = layer(x, config.norm_eps, plain)
    q, k, v = (pattention(y, attn[f"{n}_keys"], attn[f"{n}_values"], scale[0]) for n in ("query", "key", "value"))
    q, k = (turn(heads, config.rope_theta, config.rotary_dim) for heads in (q, k))
    heads = attend(q, k, v, np.eye(v[0, 0].size).reshape(*v.shape[2:], -1)).reshape(v.shape)
    x = x + pattention(heads, attn["out_keys"], attn["out_values"], scale[1])
    return x + pattention(layer(x, config.norm_eps, plain), mlp["keys"], mlp["values"], scale[2])


def own_block(config, block, x, tokens):
    attn, mlp = block["attn"], block["mlp"]
    y, z = (layer(x, config.norm_eps, block[f"{name}_norm"]) for name in ("attn", "mlp"))
    q, k, v = (project(y, attn, name) for name in ("query", "key", "value"))
    v = v + attn["value_embedding"][tokens]
    return x + attend(q, k, v, attn["out"]) + np.maximum(z @ mlp["up"], 0) ** 2 @ mlp["down"]


def looped(config, params, tokens, block_scale):
    """The stream after the last layer: prelude, cores with what follows every pass, coda."""
    eps, half = config.norm_eps, config.head_dim // 2
    x = rms(params["embedding"][tokens], eps, 1)
    back = np.r_[np.ones(half), -np.ones(half)]  # turns by minus the angle

    def block(x, number):
        attn, mlp = ({name: w[number] for name, w in params["blocks"][part].items()} for part in ("attn", "mlp"))
        before, factor = x, config.residual_multiplier
        q, k, v = (project(rms(x, eps, 1), attn, name) for name in ("query", "key", "value"))
        q, k = (rms(back * turn(back * heads, config.rope_theta, config.head_dim), eps, 1) for heads in (q, k))
        x = x + factor * attend(q, k, v, attn["out"])
        x = x + factor * swiglu(rms(x, eps, 1), mlp)
        return x if block_scale is None else before + block_scale[number] * (x - before)

    def blocks(x, begin, count):
        for number in range(begin, begin + count):
            x = block(x, number)
        return x

    entry = x = blocks(x, 0, config.prelude)
    for core in range(config.cores):
        for _ in range(config.passes):
            x = blocks(x, config.prelude + core * config.core, config.core)
            x = x if config.injection is None else rms(x, eps, 1) + config.injection * entry
    return blocks(x, config.layers - config.coda, config.coda)


def modern_block(config, block, x, tokens):
    attn, mlp, eps = block["attn"], block["mlp"], config.norm_eps
    factor, scalar = config.residual_multiplier * added_by_depth(config), config.head_dim * wider(config, "head_dim")
    q, k, v = (project(rms(x, eps, 1), attn, name) for name in ("query", "key", "value"))
    q, k = (rms(turn(heads, config.rope_theta, config.head_dim), eps, 1) for heads in (q, k))
    x = x + factor * attend(q, k, v, attn["out"], scalar=scalar)
    return x + factor * np.maximum(rms(x, eps, 1) @ mlp["up"], 0) ** 2 @ mlp["down"]


def samba_block(config, block, x, tokens):
    attn, theta = block["attn"], config.rope_theta
    x = x + mamba(rms(x, config.norm_eps, block["mamba_norm"]["scale"]), block["mamba"])
    x = x + swiglu(rms(x, config.norm_eps, block["mamba_mlp_norm"]["scale"]), block["mamba_mlp"])
    y = rms(x, config.norm_eps, block["attn_norm"]["scale"])
    q, k, v = (project(y, attn, name) for name in ("query", "key", "value"))
    q, k = (turn(heads, theta, config.head_dim) for heads in (q, k))
    x = x + attend(q, k, v, attn["out"], config.sliding_window)
    return x + swiglu(rms(x, config.norm_eps, block["attn_mlp_norm"]["scale"]), block["attn_mlp"])


_erf = np.vectorize(math.erf, otypes=[float])
LAYER_NORMED = ("gpt2", "gpt_neox", "tokenformer", "own", "olmo")
GEMMAS = ("gemma", "gemma2", "gemma3_text")
BLOCKS = dict.fromkeys(("llama", "mixtral", "olmoe"), llama_block) | {"gpt_neox": gpt_neox_block, "own": own_block}
BLOCKS |= {"gpt2": gpt2_block, "samba": samba_block, "tokenformer": tokenformer_block, "modern": modern_block}
BLOCKS |= {"olmo": olmo_block, "olmo2": olmo2_block} | dict.fromkeys(GEMMAS, gemma_block)


def forward(config, params, tokens_BT, block_scale=None):
    """Logits in the parameters' precision. block_scale: of what each whole block adds to the stream."""
    name, final = config.architecture.name, params.get("final_norm", {})
    if name == "looped":
        x = looped(config, params, tokens_BT, block_scale)
        return config.output_multiplier * rms(x, config.norm_eps, 1) @ params["head"]
    x = params["embedding"][tokens_BT] * (np.sqrt(config.embed) if name in GEMMAS else 1)
    if "positions" in params:
        x = x + params["positions"][: tokens_BT.shape[1]]
    x = rms(x, config.norm_eps, 1) if name == "modern" else x
    for number in range(config.depth):
        block = jax.tree.map(lambda w: w[number], params["blocks"]) | {"number": number}  # noqa: B023
        after = BLOCKS[name](config, block, x, tokens_BT)
        x = after if block_scale is None else x + block_scale[number] * (after - x)
    if name in LAYER_NORMED:
        x = layer(x, config.norm_eps, final)
    else:
        x = rms(x, config.norm_eps, final.get("scale", 1) + (name in GEMMAS))
    logits = x @ (params["head"] if "head" in params else params["embedding"].T) / wider(config, "embed")
    cap = getattr(config, "logit_cap", None)
    return logits if cap is None else cap * np.tanh(logits / cap)


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
