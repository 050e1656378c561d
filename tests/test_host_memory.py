"""What is freed is kept. Run as a script, in a process of its own: the pages that calls touch for the first time."""

import platform
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from growlm.__main__ import main
from growlm.errors import InputError
from growlm.training import own_process
from growlm.training.host_memory import keep_freed_memory

BYTES, CALLS = 2**26, 8


def new_pages():
    """Of CALLS of a program with BYTES of temporary memory, after as many."""
    keep_freed_memory()
    program = jax.jit(lambda x: jnp.sum(jax.lax.optimization_barrier(jnp.sin(x)) ** 2))
    x = jnp.zeros(BYTES // 4)
    for _ in range(CALLS):
        program(x).block_until_ready()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(CALLS):
        program(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_what_a_program_frees_is_kept_for_its_next_call():
    said = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True).stdout
    of_a_call = BYTES / resource.getpagesize()
    assert int(said) < 0.5 * CALLS * of_a_call  # the heap may still grow now and then


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_the_commands_that_train_set_their_process_up_first(command, monkeypatch, capsys):
    def refuse():
        raise InputError("set up")

    monkeypatch.setattr(own_process, "join_processes", lambda: None)
    monkeypatch.setattr(own_process, "keep_freed_memory", refuse)  # in this process nothing may change
    assert main([command, "--config=none.py", "--workdir=none"]) == 2
    assert capsys.readouterr().err.endswith("growlm: set up\n")


if __name__ == "__main__":
    print(new_pages())
