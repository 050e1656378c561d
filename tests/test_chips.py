import pytest

from growlm.laws.compute import CHIPS, GIB, chip_of, peak_flops


@pytest.mark.parametrize(
    "kind, published",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA B200", 2250e12),
    ],
)
def test_the_peak_is_the_published_one(kind, published):
    assert peak_flops(kind) == published


def test_sparse_numbers_of_datasheets_are_halved():
    sparse = {"h100-sxm": 1979e12, "h100-pcie": 1513e12, "h100-nvl": 1671e12, "h200": 1979e12, "l40s": 733e12}
    for name, flops in sparse.items():
        assert CHIPS[name].peak_flops == pytest.approx(flops / 2, rel=0.02), name


@pytest.mark.parametrize(
    "kind, name",
    [
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
    ],
)
def test_names_that_look_alike_are_told_apart(kind, name):
    assert chip_of(kind) is CHIPS[name]


@pytest.mark.parametrize(
    "kind",
    ["cpu", "", "TPU v4 lite", "NVIDIA H100", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 D"],
)
def test_a_device_without_a_row_has_no_peak(kind):
    assert chip_of(kind) is None
    assert peak_flops(kind) is None


def test_no_two_chips_share_a_name_or_a_kind():
    kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))
    assert all(name == chip.name for name, chip in CHIPS.items())


def test_the_chips_of_topologies_carry_their_memory():
    memory = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
    assert {name: CHIPS[name].hbm_bytes / GIB for name in memory} == memory


def test_where_a_device_is_half_a_chip_so_are_its_numbers():
    assert CHIPS["v3"].peak_flops * 2 == 123e12
    assert CHIPS["v7x"].peak_flops * 2 == 2307e12
    assert CHIPS["v7x"].hbm_bytes * 2 == 192 * GIB
