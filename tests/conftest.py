"""How many random cases a property is tried on (--hypothesis-profile=thorough: several thousand), and tidying up."""

import gc

import jax
import pytest
from hypothesis import settings

from growlm.training import programs

settings.register_profile("default", max_examples=300, deadline=None)
settings.register_profile("thorough", max_examples=5000, deadline=None)
settings.load_profile("default")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Every compiled program holds memory maps, of which a process may have 65,530: XLA ends in a fault beyond."""
    yield
    programs.forget_programs()
    jax.clear_caches()
    gc.collect()
