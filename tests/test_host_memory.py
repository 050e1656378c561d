"""What is freed is kept. Run as a script, in a process of its own: the pages that calls touch for the first time."""

import dataclasses
import platform
import resource
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import tiny

import growlm
from growlm.__main__ import main
from growlm.errors import InputError
from growlm.models import ModelConfig, parameter_count
from growlm.training import host_memory, own_process
from growlm.training.host_memory import keep_freed_memory
from growlm.training.mesh import MeshConfig
from growlm.training.run import train

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

    monkeypatch.setattr(own_process, "join_job", lambda: None)
    monkeypatch.setattr(own_process, "keep_freed_memory", refuse)  # in this process nothing may change
    assert main([command, "--config=none.py", "--workdir=none"]) == 2
    assert capsys.readouterr().err.endswith("growlm: set up\n")


def test_a_run_whose_model_no_device_holds_is_refused_before_it_is_there(tmp_path, monkeypatch):
    config = tiny.run_config(tiny.write_corpus(tmp_path), tiny.stage(2), tiny.grown(2))
    largest = max(parameter_count(stage.model) for stage in config.stages)
    monkeypatch.setattr(host_memory, "machine_memory", lambda: 8 * largest - 1)
    parts = f"{largest:,} parameters in 1 parts"
    with pytest.raises(InputError, match=f"a device must hold the model and its gradients.*{parts}, got 0 GB"):
        train(dataclasses.replace(config, mesh=MeshConfig(data=1)), tmp_path / "run")
    assert not [*(tmp_path / "run").glob("*.json")]


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("run", "sample --prompt=a --mesh.data=1 --checkpoint="),
        ("folder", "sample --prompt=a --mesh.data=1 --checkpoint="),
        ("folder", "evaluate --perplexity=none.txt --mesh.data=1 --checkpoint="),
        ("run", "convert --to=huggingface --output=out --source="),
        ("run", "grow --output=out --target.layers=2 --source="),
    ],
)
def test_a_checkpoint_that_no_device_holds_is_one_line(tmp_path, monkeypatch, capsys, kind, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.txt").write_text("text")
    config, source = tiny.run_config(tiny.write_corpus(tmp_path), tiny.stage(1)), tmp_path / kind
    model = config.stages[0].model
    if kind == "run":
        train(config, source)
    else:
        growlm.write_model(source, model, growlm.init(model, jax.random.key(0)))
    monkeypatch.setattr(host_memory, "machine_memory", lambda: 4 * parameter_count(model) - 1)
    assert main(f"{command}{source}".split()) == 2
    said = f"growlm: a device must hold the model, 0 GB for {parameter_count(model):,} parameters in 1 parts, got 0 GB"
    assert capsys.readouterr().err.splitlines()[-1] == f"{said} of memory"


def test_parts_of_a_model_may_be_smaller_and_share_the_machine(monkeypatch):
    model, (cpu,) = ModelConfig(**tiny.MODEL), jax.devices()[:1]
    monkeypatch.setattr(host_memory, "machine_memory", lambda: 8 * parameter_count(model) * 2)
    four = {parts: SimpleNamespace(shape={"fsdp": parts, "tensor": 1}, local_devices=[cpu] * 4) for parts in (1, 2)}
    host_memory.check_memory([model], four[2])
    with pytest.raises(InputError, match="parameters in 1 parts"):
        host_memory.check_memory([model], four[1])


if __name__ == "__main__":
    print(new_pages())
