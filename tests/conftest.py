"""Settings of all tests: how programs are compiled, how many random cases a property is tried on, and tidying up."""

import mmap
import os
from pathlib import Path

import jaxlib

# Set before JAX is imported, which reads them then; processes that tests start inherit them. Compiling is most of what
# there is to do: a cache for all, and XLA's CPU compiler at its quickest (a train step: 0.5 s instead of 3.5).
QUICK = {"xla_cpu_use_fusion_emitters": "false", "xla_cpu_parallel_codegen_split_count": "1"}
for _library in Path(jaxlib.__file__).parent.glob("libjax_common*"):
    with _library.open("rb") as _file, mmap.mmap(_file.fileno(), 0, access=mmap.ACCESS_READ) as _text:
        for _flag, _value in QUICK.items():
            _flags = os.environ.get("XLA_FLAGS", "")
            if _flag not in _flags and _text.find(_flag.encode()) >= 0:  # XLA ends the process where it knows no flag
                os.environ["XLA_FLAGS"] = f"--{_flag}={_value} {_flags}"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import gc

import jax
import pytest
from bucket_servers import serving
from hypothesis import settings

from growlm.training import programs

settings.register_profile("default", max_examples=200, deadline=None)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile("default")


MAPS = Path("/proc/self/maps")
MANY = 20_000


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Every compiled program holds memory maps, of which a process may have 65,530: XLA ends in a fault beyond."""
    yield
    programs.forget_programs()
    if not MAPS.exists() or MAPS.read_bytes().count(b"\n") > MANY:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def own_programs():
    """JAX as users start it: no folder is named, and the least program is cached."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (None, 0.0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def bucket_servers():
    """Servers of buckets on this machine, with the environment that leads to them."""
    with serving() as variables:
        yield variables


@pytest.fixture
def buckets(bucket_servers, tmp_path, monkeypatch):
    """Those servers, and a cache of the test's own for what is copied from buckets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return bucket_servers
