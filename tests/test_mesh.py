"""On every mesh of 8 devices a run with growth has the losses of one device."""

import dataclasses
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from eight import on_eight_devices
from meshes import config

from growlm import InputError
from growlm.training.mesh import MeshConfig, make_mesh, mesh_of, share_of_batch
from growlm.training.run import train
from growlm.training.settings import EvaluationConfig

SHAPES = [(data, fsdp, 8 // data // fsdp) for data in (1, 2, 4, 8) for fsdp in (1, 2, 4, 8) if data * fsdp <= 8]
SPECS = ["x".join(map(str, shape)) for shape in SHAPES]
PARTS = "2x2x2:2"  # in two microbatches
CASES = [spec if spec == "2x2x2" else pytest.param(spec, marks=pytest.mark.slow) for spec in (*SPECS, PARTS)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def on_eight(request, corpus, tmp_path_factory):
    """One process for all meshes that are asked for: they share the import, the cache and the corpus."""
    callspecs = [getattr(item, "callspec", None) for item in request.session.items]
    specs = [found.params["spec"] for found in callspecs if found and found.params.get("spec") in (*SPECS, PARTS)]
    script = Path(__file__).with_name("meshes.py")
    return on_eight_devices(script, tmp_path_factory.mktemp("runs"), corpus, *specs)


@pytest.fixture(scope="module")
def on_one(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    train(config(corpus, {}), folder, threading.Event())
    return [record["loss"] for record in tiny.records(folder) if record["loss"] is not None]


@pytest.mark.parametrize("spec", CASES)
def test_a_mesh_trains_and_grows_as_one_device_does(on_eight, on_one, spec):
    assert len(on_one) == 20
    np.testing.assert_allclose(on_eight["losses"][spec], on_one, rtol=1e-5)
    assert on_one[-1] < on_one[0] - 0.5  # it learns: equal losses of nothing would be no evidence


def test_weights_and_their_moments_lie_in_parts(on_eight):
    gate, head = [1, 32 // 2, 48 // 2], [32 // 2, 256 // 2]
    shapes = on_eight["lies"]
    assert len(shapes) == 6  # the parameter and its two moments, of both
    assert all(shape == (gate if "gate" in path else head) for path, shape in shapes.items())


# --- What is refused -------------------------------------------------------------------------------------------------


class Device:
    """As much of a device as a mesh asks for."""

    platform, device_kind = "cpu", "cpu"

    def __init__(self, number, process):
        self.id, self.process_index = number, process


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        ({"data": 3}, "mesh must be over all 1 devices, got 'data 3 x fsdp 1 x tensor 1 = 3'"),
        ({"fsdp": 2}, "mesh must be over all 1 devices, got 'data 1 x fsdp 2 x tensor 1 = 2'"),
    ],
)
def test_a_mesh_that_is_not_the_devices_is_refused_before_anything_is_written(corpus, tmp_path, mesh, says):
    with pytest.raises(InputError, match=says):
        train(config(corpus, mesh), tmp_path / "run", threading.Event())
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_refused(corpus, monkeypatch):
    devices = [Device(number, 0) for number in range(3)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    run, parts = config(corpus, {}), "must be a multiple of mesh.data 3 x mesh.fsdp 1 = 3, got"
    with pytest.raises(InputError, match=rf"stages\[0\].batch / microbatches {parts} 16"):
        mesh_of(run.mesh, run.batch_sizes)
    run = dataclasses.replace(run, evaluation=EvaluationConfig(batch=4))
    assert run.batch_sizes["evaluation.batch of stages[0]"] == 4


def test_processes_feed_parts_of_the_batch_or_the_same_part():
    def shares(mesh, per_process, monkeypatch):
        devices = [Device(number, number // per_process) for number in range(8)]
        made = make_mesh(MeshConfig(**mesh), devices)
        found = []
        for process in range(8 // per_process):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            found.append(share_of_batch(made))
        return found

    with pytest.MonkeyPatch.context() as patch:
        assert shares({"fsdp": 4}, 2, patch) == [(0, 4), (1, 4), (2, 4), (3, 4)]
        assert shares({"tensor": 4}, 2, patch) == [(0, 2), (0, 2), (1, 2), (1, 2)]
        assert shares({"tensor": 8}, 2, patch) == [(0, 1)] * 4
        with pytest.raises(InputError, match=r"mesh.tensor must be .* 12 over 2 processes, got 4"):
            devices = [Device(number, number // 6) for number in range(12)]
            share_of_batch(make_mesh(MeshConfig(tensor=4), devices))
