"""Numbers that stay right: a run's losses on one device and on eight, and in 16 bits, over a thousand steps."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from eight import on_eight_devices
from thousand_steps import STEPS, losses, settings

from growlm.training.config import build_run
from growlm.training.run import train

ROUNDING = 1e-6  # of float32: relative to the loss, over all steps
HALF = 0.01  # of bfloat16, likewise


@pytest.mark.slow
def test_a_thousand_steps_with_two_growths_have_the_losses_of_one_device(tmp_path):
    corpus = tiny.write_corpus(tmp_path)
    train(build_run(settings(corpus)), tmp_path / "one")
    one = losses(tmp_path / "one")
    eight = on_eight_devices(Path(__file__).with_name("thousand_steps.py"), tmp_path / "eight", corpus)
    assert len(one["loss"]) == sum(STEPS) and one["loss"][-1] < one["loss"][0] / 2
    for name, losses_of_one in one.items():
        np.testing.assert_allclose(eight[name], losses_of_one, rtol=ROUNDING, atol=0, err_msg=name)
    assert eight["loss"] != one["loss"]  # the order of sums differs: nothing else would be a test

    run = settings(corpus, dtype="bfloat16")
    train(build_run(run | {"stages": run["stages"][:2]}), tmp_path / "half")
    half = losses(tmp_path / "half")
    apart = np.abs(np.array(half["loss"]) / one["loss"][: len(half["loss"])] - 1)
    assert len(apart) == sum(STEPS[:2]) and 1e-4 < apart.max() < HALF
