"""The folder of compiled programs: what is damaged in it is compiled anew, and the folder mended."""

import random

import jax
import jax.numpy as jnp

from growlm.training.programs import cached_on_disk


def test_a_flipped_bit_in_a_compiled_program_is_never_run_and_the_entry_is_made_anew(own_programs, tmp_path):
    def run():
        jax.clear_caches()
        with cached_on_disk(tmp_path):
            return jax.jit(lambda x: jnp.sin(x) @ x.T + 1.0)(jnp.arange(64.0).reshape(8, 8))

    want, draw = run(), random.Random(0)
    entries = {path: path.read_bytes() for path in tmp_path.glob("*-cache")}
    assert entries
    used = {path: path.stat().st_mtime_ns for path in entries}
    run()
    assert {path: path.stat().st_mtime_ns for path in entries} == used  # whole ones are read
    for _ in range(3):
        for path, content in entries.items():
            changed = bytearray(content)
            changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
        damaged = {path: path.read_bytes() for path in entries}
        assert (run() == want).all()
        assert all(path.read_bytes() != damaged[path] for path in entries)
