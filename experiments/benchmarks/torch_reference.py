"""growlm's decoder and train step in PyTorch, compiled or eager: the yardstick of train_step.py.

The same architecture (RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases, untied head), written as
one writes PyTorch: nn.Linear, F.rms_norm, F.scaled_dot_product_attention (cuDNN's on a GPU that has it), fused AdamW.
Parameters are float32 and are cast to the compute dtype where they are used, as in growlm. Modules carry the names of
growlm's weights, and `torch_parameters` turns a growlm tree (parameters or gradients) into a state dict.

Compiled, the loss and its backward pass are one graph each, without a break; clipping and AdamW are fused kernels
already and stay as they are.

Shape suffixes: B batch, T positions, D embed, H heads, K kv_heads, h head_dim, F mlp, V vocab, N = B x T rows.
"""

import gc
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn.attention import SDPBackend, sdpa_kernel

from growlm.errors import InputError
from growlm.models import ModelConfig, Params, Weight, check_params, declared, path_of
from growlm.training.optimizer import OptimizerConfig

Loss = Callable[["Decoder", torch.Tensor], torch.Tensor]  # of a decoder, on int64[batch, length + 1] tokens


class Linear(nn.Linear):
    """A product with a float32 matrix, computed in the dtype of the input."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x):
        """[..., inputs] -> [..., outputs]."""
        return F.linear(x, self.weight.to(x.dtype))


class Norm(nn.Module):
    """RMSNorm with a gain."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(config.embed))
        self.eps = config.norm_eps

    def forward(self, x):
        """[..., D] -> [..., D]."""
        return F.rms_norm(x, self.scale.shape, self.scale.to(x.dtype), self.eps)


def rotary_table(length: int, head_dim: int, theta: float, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [T, h/2], computed in float32, in the dtype and on the device of `like`."""
    frequency_h = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=like.device) / head_dim)
    angle_Th = torch.arange(length, dtype=torch.float32, device=like.device)[:, None] * frequency_h
    return angle_Th.cos().to(like.dtype), angle_Th.sin().to(like.dtype)


def rotate(x_BHTh: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turns each pair (i, i + h/2) by its position's angle."""
    cos, sin = rotary
    a, b = x_BHTh.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        query_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.grouped = config.kv_heads != config.heads
        self.query = Linear(config.embed, query_width)
        self.key = Linear(config.embed, kv_width)
        self.value = Linear(config.embed, kv_width)
        self.out = Linear(query_width, config.embed)

    def forward(self, x_BTD, rotary):
        """[B, T, D] -> [B, T, D]."""
        q_BHTh = rotate(self._heads(self.query(x_BTD)), rotary)
        k_BKTh = rotate(self._heads(self.key(x_BTD)), rotary)
        v_BKTh = self._heads(self.value(x_BTD))
        o_BHTh = F.scaled_dot_product_attention(q_BHTh, k_BKTh, v_BKTh, is_causal=True, enable_gqa=self.grouped)
        return self.out(o_BHTh.transpose(1, 2).flatten(2))

    def _heads(self, y):
        return y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = Linear(config.embed, config.mlp)
        self.up = Linear(config.embed, config.mlp)
        self.down = Linear(config.mlp, config.embed)

    def forward(self, x_BTD):
        """[B, T, D] -> [B, T, D]."""
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Block(nn.Module):
    """One decoder layer, pre-norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attn_norm, self.attn = Norm(config), Attention(config)
        self.mlp_norm, self.mlp = Norm(config), Mlp(config)

    def forward(self, x_BTD, rotary):
        """[B, T, D] -> [B, T, D]."""
        x_BTD = x_BTD + self.attn(self.attn_norm(x_BTD), rotary)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class Decoder(nn.Module):
    """The decoder with an untied head, and its loss."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.embed)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = Norm(config)
        self.head = Linear(config.embed, config.vocab)

    def forward(self, tokens_BT, dtype: torch.dtype):
        """int64[B, T] -> float32 logits [B, T, V]."""
        x_BTD = self.embedding(tokens_BT).to(dtype)
        rotary = rotary_table(tokens_BT.shape[1], self.config.head_dim, self.config.rope_theta, like=x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotary)
        return self.head(self.final_norm(x_BTD)).float()


def next_token_loss(decoder: Decoder, tokens_BS: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Mean cross-entropy, in nats a token, of predicting tokens[:, 1:] from what comes before each."""
    logits_BTV = decoder(tokens_BS[:, :-1], dtype)
    return F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BS[:, 1:].flatten())


def loss_function(dtype: str, compiled: bool = False) -> Loss:
    """`next_token_loss` in that compute dtype. Where torch.compile fails, the first call raises InputError."""
    eager = partial(next_token_loss, dtype=getattr(torch, dtype))
    if not compiled:
        return eager
    program = torch.compile(eager, fullgraph=True, dynamic=False)

    def loss(decoder: Decoder, tokens_BS: torch.Tensor) -> torch.Tensor:
        try:
            return program(decoder, tokens_BS)
        except BackendCompilerFailed as error:  # it needs a C++ compiler on CPUs, Triton and a C compiler on GPUs
            reason = str(error).partition("\n")[0]
            raise InputError(f"torch.compile: {reason}; allowed without a compiler is --compare=torch_eager") from error

    return loss


def make_optimizer(decoder: Decoder, config: OptimizerConfig, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW on every parameter; fused, the fastest of PyTorch's forms."""
    return torch.optim.AdamW(
        decoder.parameters(),
        lr=learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def train_step(
    loss: Loss, decoder: Decoder, optimizer: torch.optim.Optimizer, clip: float, tokens_BS: torch.Tensor
) -> torch.Tensor:
    """One update; gives the loss before it."""
    value = loss(decoder, tokens_BS)
    value.backward()
    nn.utils.clip_grad_norm_(decoder.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    return value.detach()


def torch_parameters(config: ModelConfig, params: Params) -> dict[str, torch.Tensor]:
    """A growlm tree (parameters, or gradients) as a state dict of the decoder, copied on the device that holds it."""
    check_params(config, params)
    leaves = {
        path_of(path): torch.from_dlpack(jnp.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    entries = (_entries(weight, leaves[weight.path]) for weight in declared(config))
    return {name: value for named in entries for name, value in named.items()}


def _entries(weight: Weight, leaf: torch.Tensor) -> dict[str, torch.Tensor]:
    """One weight under its names in the decoder: a stacked one becomes an entry for every block."""
    name = weight.path.replace("/", ".") + ("" if weight.elementwise else ".weight")
    if not weight.stacked:
        return {name: _layout(weight, leaf)}
    return {name.replace("blocks", f"blocks.{i}"): _layout(weight, block) for i, block in enumerate(leaf)}


def _layout(weight: Weight, value: torch.Tensor) -> torch.Tensor:
    """A matrix as nn.Linear holds it, [written, read]; gains and the embedding's rows stay as they are."""
    if weight.elementwise or weight.path == "embedding":
        return value.clone()
    read = math.prod(size for size, dim in zip(value.shape, weight.dims, strict=True) if dim.reads)
    return value.reshape(read, -1).T.clone(memory_format=torch.contiguous_format)


def decoder_of(config: ModelConfig, params: Params) -> Decoder:
    """The decoder with growlm's parameters, on the device of JAX."""
    with torch.device("meta"):  # to draw values that are thrown away takes its time
        decoder = Decoder(config)
    decoder.load_state_dict(torch_parameters(config, params), assign=True)
    return decoder.to(device_beside_jax())


def device_beside_jax() -> str:
    """The device that JAX computes on, in PyTorch's words. Raises InputError where PyTorch does not see it."""
    backend = jax.default_backend()
    if backend == "gpu" and torch.cuda.is_available():
        return "cuda"
    if backend == "cpu":
        return "cpu"
    raise InputError(f"jax computes on {backend}, which this torch {torch.__version__} does not see")


def _tokens(tokens_BS: jax.Array) -> torch.Tensor:
    return torch.tensor(np.asarray(tokens_BS), dtype=torch.int64, device=device_beside_jax())


def loss_of(config: ModelConfig, params: Params, tokens_BS: jax.Array) -> float:
    """The loss in float32, eager."""
    torch.set_float32_matmul_precision("highest")
    with torch.no_grad():
        return next_token_loss(decoder_of(config, params), _tokens(tokens_BS), torch.float32).item()


def attention_kernel(config: ModelConfig, batch: int, length: int, dtype: str) -> SDPBackend:
    """The kernel of attention at that shape: cuDNN's where PyTorch has it for the device, else PyTorch's choice."""
    device, kv_heads = device_beside_jax(), config.kv_heads

    def empty(heads: int) -> torch.Tensor:
        shape = batch, heads, length, config.head_dim
        return torch.empty(shape, dtype=getattr(torch, dtype), device=device, requires_grad=True)

    q, k, v, grouped = empty(config.heads), empty(kv_heads), empty(kv_heads), kv_heads != config.heads
    if device == "cuda":
        asked = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, True, grouped)
        if torch.backends.cuda.can_use_cudnn_attention(asked):
            return SDPBackend.CUDNN_ATTENTION
    return SDPBackend(torch._fused_sdp_choice(q, k, v, is_causal=True, enable_gqa=grouped))


def repeated_step(
    loss: Loss,
    decoder: Decoder,
    tokens_BS: jax.Array,
    config: OptimizerConfig,
    learning_rate: float,
    kernel: SDPBackend,
) -> Callable[[int], float]:
    """A function that takes so many train steps on one batch, waits for the last and gives its loss.

    kernel: of attention, and no other.
    """
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as JAX does
    tokens, optimizer = _tokens(tokens_BS), make_optimizer(decoder, config, learning_rate)

    def repeat(times: int) -> float:
        with sdpa_kernel(kernel):
            for _ in range(times):
                last = train_step(loss, decoder, optimizer, config.clip, tokens)
        return last.item()

    return repeat


def repeated_product(rows: int, dtype: str) -> Callable[[int], None]:
    """A function that computes a square product so many times, and waits for the last."""
    torch.set_float32_matmul_precision("high")
    a, b = torch.randn(2, rows, rows, device=device_beside_jax()).to(getattr(torch, dtype))

    def repeat(times: int) -> None:
        for _ in range(times):
            c = a @ b
        c[0, 0].item()

    return repeat


def release() -> None:
    """Forgets compiled programs, and hands a GPU's memory back to the driver."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
