"""Every architecture trains on eight devices as on one, goes on bit for bit, and compiles for a TPU."""

import dataclasses
import importlib.util
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from eight import on_eight_devices

from growlm.growth.overview import example
from growlm.models import ARCHITECTURES
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.optimizer import OptimizerConfig
from growlm.training.run import train
from growlm.training.step import StepSpec, lower_step

HERE = Path(__file__).parent
every = pytest.mark.parametrize("name", ARCHITECTURES)


@pytest.mark.slow
@every
def test_it_trains_on_eight_devices_as_on_one(name):
    found = on_eight_devices(HERE / "architectures_on_eight.py", name)[name]
    np.testing.assert_allclose(found["many"], found["one"], rtol=1e-5)
    assert found["many"][-1] < found["many"][0]
    # What lies in a branch is split by tensor and by fsdp.
    assert max(parts for path, parts in found["parts"].items() if path.startswith("blocks/")) == 4


@pytest.mark.slow
@every
def test_a_run_of_it_that_grows_and_is_stopped_after_every_step_ends_with_the_same_bits(name, tmp_path):
    architecture = ARCHITECTURES[name]
    small = dict(architecture.example) | {"architecture": name, "vocab": 256}
    stack = architecture.stack.field
    grown = tiny.grown(2, model=small | {stack: 2 * small[stack]}, growth={"operator": "zero"})
    config = tiny.run_config(tiny.write_corpus(tmp_path), tiny.stage(2, model=small), grown)
    train(config, tmp_path / "whole")
    assert tiny.train_in_parts(config, tmp_path / "parts") >= 3
    assert tiny.timeless(tmp_path / "parts") == tiny.timeless(tmp_path / "whole")
    whole, parts = (tiny.load_saved(tmp_path / part)[2] for part in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    jax.tree.map(np.testing.assert_array_equal, whole.opt_state, parts.opt_state)


@pytest.fixture(scope="module")
def chips():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, which compiles for TPUs, is not installed: pip install 'growlm[tpu]'")
    with pytest.MonkeyPatch.context() as patch:
        # Without these it asks the cloud which TPU this is, and a second process fails at a lock.
        for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
            patch.setenv(variable, "1")
        from jax.experimental import topologies

        yield topologies.get_topology_desc("v5e:2x2", platform="tpu").devices


@pytest.mark.slow
@every
def test_its_train_step_compiles_for_a_tpu(name, chips):
    config = dataclasses.replace(example(ARCHITECTURES[name]), vocab=64)
    mesh = make_mesh(MeshConfig(1, 2, 2), chips)
    lower = partial(lower_step, batch=4, length=128, mesh=mesh)
    program = lower(StepSpec(config, OptimizerConfig(), dtype="bfloat16", remat="full")).compile()
    assert program.memory_analysis().temp_size_in_bytes > 0
