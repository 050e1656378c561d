"""What training costs in FLOPs, and what an accelerator can do at best: peak FLOP/s and memory by jax device kind."""

from dataclasses import dataclass

TERA = 1e12
GIB = 2**30


def training_flops(params: float, tokens: float) -> float:
    """The paper's count of training compute, C = 6 N D, in FLOPs.

    N is the number of ALL parameters, embedding and head included. The paper does not say so; its figures do:
    each carries a FLOPs axis and a token axis, and 6 x total parameters falls between the tick labels at
    every size, while 6 x non-embedding parameters fails at 410M and 1.1B, and so does any count with
    attention in it.

    Args:
        params: number of parameters N (a number or an array).
        tokens: tokens trained on D (a number or an array that broadcasts with it).
    """
    return 6.0 * params * tokens


def exact_flops_per_token(
    matmul_params: int, layers: int, heads: int, head_dim: int, length: int, window: int | None = None
) -> float:
    """FLOPs that one training token costs, forward and backward, with causal attention; a sequence's mean.

    A parameter in a matrix product costs one multiply and one add going forward, and twice that going
    backward (the gradient of the input and the gradient of the weight): 6 FLOPs per token. Looking up an
    embedding multiplies nothing, so it counts only where it is tied and serves as the head too; the gains of
    norms are not in products.

    Position t (from 0) attends to t + 1 keys, so the mean over a sequence is (length + 1) / 2 keys, fewer with a
    window. Each key costs heads x head_dim multiply-adds in the product of queries and keys, and as many again in
    the weighted sum of values: 4 x heads x head_dim FLOPs. Forward that makes 2 x heads x head_dim x (length + 1)
    per layer without a window, and forward plus backward three times that. The softmax is left out, and so is what
    rematerialisation computes a second time.

    Args:
        matmul_params: number of parameters that take part in matrix products.
        layers: number of blocks with attention.
        heads: number of query heads. Shared key-value heads save memory and parameters, not these products.
        head_dim: size of one head.
        length: tokens in a sequence.
        window: the positions that a query sees, if there is a limit.
    """
    seen = min(window or length, length)
    keys = (seen * (seen + 1) / 2 + (length - seen) * seen) / length
    attention = 12.0 * layers * heads * head_dim * keys
    return 6.0 * matmul_params + attention


@dataclass(frozen=True)
class Chip:
    """One row of the table. Everything is per jax device, which is half a chip on TPU v3 and v7x.

    Args:
        name: short name, the key in CHIPS.
        peak_flops: dense bf16 matrix FLOP/s as published; fp16 on V100 and T4, whose tensor cores have no bf16.
        hbm_bytes: bytes of memory on the device. What a program gets is a few percent less.
        kinds: every `device.device_kind` that means this chip, in full.
    """

    name: str
    peak_flops: float
    hbm_bytes: int
    kinds: tuple[str, ...]


def _chip(name: str, teraflops: float, gib: int, *kinds: str) -> Chip:
    """A row from the units of the datasheets."""
    return Chip(name, teraflops * TERA, gib * GIB, kinds)


# Sources. TPU: docs.cloud.google.com/tpu/docs, pages v3, v4, v5e, v5p, v6e, tpu7x (peak and HBM per chip); which
# names mean which chip, and where a device is one of two cores: jax/_src/pallas/mosaic/tpu_info.py. That file has
# 140e12 for a v3 chip; this table keeps to the 123e12 of Google's page.
# NVIDIA: the datasheet of each product, and the whitepapers (GA102, Ada, H100) where it has no dense number. From
# Ampere on datasheets print bf16 with 2:4 sparsity, twice what a dense product can reach; here they are halved.
# GeForce numbers are those with fp32 accumulation. NVIDIA's 'GB' of memory are GiB.
_ROWS = (
    _chip("v3", 123 / 2, 32 // 2, "TPU v3"),
    _chip("v4", 275, 32, "TPU v4"),
    _chip("v5e", 197, 16, "TPU v5 lite", "TPU v5e"),
    _chip("v5p", 459, 95, "TPU v5", "TPU v5p"),
    _chip("v6e", 918, 32, "TPU v6 lite", "TPU v6e"),
    _chip("v7x", 2307 / 2, 192 // 2, "TPU7x"),
    _chip("v100-sxm-16gb", 125, 16, "Tesla V100-SXM2-16GB"),
    _chip("v100-sxm-32gb", 125, 32, "Tesla V100-SXM2-32GB"),
    _chip("v100-pcie-16gb", 112, 16, "Tesla V100-PCIE-16GB"),
    _chip("v100-pcie-32gb", 112, 32, "Tesla V100-PCIE-32GB"),
    _chip("t4", 65, 16, "Tesla T4"),
    _chip("l4", 121, 24, "NVIDIA L4"),
    _chip("a10g", 70, 24, "NVIDIA A10G"),
    _chip("l40s", 362, 48, "NVIDIA L40S"),
    _chip("a100-40gb", 312, 40, "NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB", "A100-SXM4-40GB", "A100-PCIE-40GB"),
    _chip("a100-80gb", 312, 80, "NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe", "A100-SXM4-80GB", "A100-SXM-80GB"),
    _chip("h100-sxm", 989.4, 80, "NVIDIA H100 80GB HBM3"),
    _chip("h100-pcie", 756, 80, "NVIDIA H100 PCIe"),
    _chip("h100-nvl", 835.5, 94, "NVIDIA H100 NVL"),
    _chip("h200", 989.4, 141, "NVIDIA H200"),
    _chip("h200-nvl", 835.5, 141, "NVIDIA H200 NVL"),
    _chip("gh200-96gb", 989.4, 96, "NVIDIA GH200 480GB", "NVIDIA GH200 120GB"),  # named by the memory of the CPU
    _chip("gh200-144gb", 989.4, 144, "NVIDIA GH200 144G HBM3e"),
    _chip("b200", 2250, 180, "NVIDIA B200"),
    _chip("gb200", 2500, 186, "NVIDIA GB200"),
    _chip("rtx-3090", 71, 24, "NVIDIA GeForce RTX 3090"),
    _chip("rtx-4090", 165.2, 24, "NVIDIA GeForce RTX 4090"),
)

CHIPS = {chip.name: chip for chip in _ROWS}
_BY_KIND = {kind: chip for chip in _ROWS for kind in chip.kinds}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that jax calls `device_kind`, or None if the table has no row for it.

    The whole string must match: 'TPU v5' is not 'TPU v5 lite', an 'NVIDIA H100 PCIe' has three quarters of the
    FLOP/s of an 'NVIDIA H100 80GB HBM3', and '... MIG 1g.10gb' is a slice of one. No number beats a wrong one.
    """
    return _BY_KIND.get(device_kind)


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of one jax device at best, or None for a device without a row (a CPU, for one)."""
    chip = chip_of(device_kind)
    return chip.peak_flops if chip else None
