"""How fast this machine computes: one block, forward and backward, for a second."""

import dataclasses
import time

import jax
import jax.numpy as jnp

from growlm.laws.compute import peak_flops
from growlm.models import ModelConfig, flops_per_token, init, next_token_loss

SECONDS = 1.0  # of measuring, after compiling


@dataclasses.dataclass(frozen=True)
class Block:
    """What is computed: batch x length tokens through one Llama block of this width."""

    embed: int
    head_dim: int
    batch: int
    length: int
    dtype: str

    @property
    def model(self) -> ModelConfig:
        """A model of this block alone, with a vocabulary that costs nearly nothing."""
        heads, mlp = self.embed // self.head_dim, self.embed * 8 // 3 // 128 * 128
        return ModelConfig(
            layers=1, embed=self.embed, heads=heads, kv_heads=heads, head_dim=self.head_dim, mlp=mlp, vocab=128
        )


# By platform: large enough to keep a device busy, small enough that a slow one is done in a second or two.
BLOCKS = {"cpu": Block(512, 64, 2, 256, "float32")}
ACCELERATOR = Block(4096, 128, 4, 2048, "bfloat16")


def block_flops(block: Block | None = None, seconds: float | None = None) -> tuple[float, float | None]:
    """(FLOP/s that one device reaches on a block, model FLOPs utilization, None where the device's peak is not known).

    Args:
      block: by default the one for the platform.
      seconds: for which steps are repeated, at least one; SECONDS by default.
    """
    seconds = SECONDS if seconds is None else seconds
    device = jax.devices()[0]
    block = block or BLOCKS.get(device.platform, ACCELERATOR)
    model, shape = block.model, (block.batch, block.length + 1)
    gradient = jax.jit(jax.grad(lambda params, tokens: next_token_loss(model, params, tokens, dtype=block.dtype)))
    arguments = jax.device_put((init(model, jax.random.key(0)), jnp.zeros(shape, "int32")), device)
    jax.block_until_ready(gradient(*arguments))  # compiled
    steps, began = 0, time.perf_counter()
    while not steps or time.perf_counter() - began < seconds:
        jax.block_until_ready(gradient(*arguments))
        steps += 1
    flops = flops_per_token(model, block.length) * block.batch * block.length * steps / (time.perf_counter() - began)
    peak = peak_flops(device.device_kind)
    return flops, flops / peak if peak else None
