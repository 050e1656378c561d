"""Growth over 8 devices: with the target's shardings, in depth without a collective, and with no memory to spare."""

from pathlib import Path

import pytest
from eight import on_eight_devices


@pytest.fixture(scope="module")
def results():
    return on_eight_devices(Path(__file__).with_name("sharded_growth.py"))


DEPTH = ["stack", "interleave", "zero", "ragged", "moments"]


@pytest.mark.parametrize("case", [*DEPTH, "depth and width"])
def test_sharded_growth_gives_the_bits_of_one_device_in_the_targets_shardings(results, case):
    assert results[case]["same"]
    assert results[case]["shardings"]
    assert results[case]["transfers"] == []


@pytest.mark.parametrize("case", DEPTH)
def test_depth_needs_no_collective_and_no_memory_beside_source_and_target(results, case):
    assert results[case]["collectives"] == []
    assert results[case]["memory"] <= 1.05


def test_the_test_can_see_a_collective(results):
    """Width that is sharded has to move: were there none in the text, the pattern would be wrong."""
    assert results["depth and width"]["collectives"]
