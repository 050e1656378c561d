"""What an accelerator can do at best: peak FLOP/s and memory, by the name that jax gives the device."""

from dataclasses import dataclass

TERA = 1e12
GIB = 2**30


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
