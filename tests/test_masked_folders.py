"""Folders whose weights are under a growth's masks: what reads weights alone refuses them, in one line."""

import contextlib
import re
import shutil

import pytest
import tiny
from trees import exact_products

import growlm
from growlm import read_model
from growlm.__main__ import main
from growlm.training.run import plan_run

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)


@pytest.fixture(scope="module")
def ramped(tmp_path_factory):
    """A run saved at steps 3 and 4, in the middle of its growth's ramp and at its end; and one grown under masks."""
    folder = tmp_path_factory.mktemp("ramped")
    growth = {"operator": "random", "options": {"mask_tokens": 2 * tiny.STEP}}
    stages = tiny.stage(2), tiny.grown(2, growth=growth)
    keep = {"checkpoint": {"every_tokens": tiny.STEP, "max_to_keep": 9}}
    config = tiny.run(tiny.write_corpus(folder), *stages, **keep)
    assert main(["train", f"--config={tiny.write_config(folder / 'run.py', config)}", f"--workdir={folder}/run"]) == 0
    masked = ["--step=2", "--operator=msg", "--factor=2", "--no_verify"]
    assert main(["grow", f"--source={folder}/run", f"--output={folder}/masked", *masked]) == 0
    shutil.copytree(folder / "run", folder / "half")
    (last,) = folder.glob("half/checkpoints/*/checkpoints/4")
    shutil.rmtree(last)
    return folder


CALLS = {"convert": ["--to=huggingface"], "grow": ["--factor=2", "--no_verify"]}
HALF, CLOSED = "must be open, got 50 % at step 3", "must be open, got 0 % at step 2"


@pytest.mark.parametrize("command", CALLS)
def test_what_is_under_masks_is_not_converted_and_not_grown(ramped, tmp_path, capsys, command):
    """The weights alone are not the model that was trained."""
    for source, step, said in (("run", ["--step=3"], HALF), ("half", [], HALF), ("masked", [], CLOSED)):
        call = [command, f"--source={ramped}/{source}", f"--output={tmp_path}/out", *step, *CALLS[command]]
        assert main(call) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(f"growlm: .*{said} of .*/{source}: ", line), line
        assert tiny.snapshot(tmp_path) == {}


def test_what_is_under_masks_is_not_read(ramped):
    for source in ("half", "masked"):
        with pytest.raises(growlm.InputError, match=f"masks of the growth must be open, got .*/{source}: "):
            read_model(ramped / source)


@pytest.mark.parametrize("step", [2, 4])
def test_before_and_after_a_ramp_all_goes_on(ramped, tmp_path, step):
    for command, arguments in CALLS.items():
        call = [command, f"--source={ramped}/run", f"--output={tmp_path}/{command}", f"--step={step}", *arguments]
        assert main(call) == 0
    assert read_model(tmp_path / "convert")[0].layers == step // 2
    assert read_model(tmp_path / "grow")[0].layers == step
    assert read_model(ramped / "run")[0].layers == 2


@pytest.mark.parametrize(("ramp", "refused"), [(2 * tiny.STEP, False), (2 * tiny.STEP + 1, True)])
def test_another_stage_comes_only_after_the_ramp(tmp_path, ramp, refused):
    growth = {"operator": "random", "options": {"mask_tokens": ramp}}
    stages = tiny.stage(1), tiny.grown(2, growth=growth), tiny.grown(1, layers=4)
    corpus = tiny.write_corpus(tmp_path)
    for number, run in ((2, tiny.run_config(corpus, *stages[:2])), (3, tiny.run_config(corpus, *stages))):
        says = r"stages\[1\].tokens must be >= 129, .* masks .* where another stage comes after it, got 128"
        with pytest.raises(growlm.InputError, match=says) if refused and number == 3 else contextlib.nullcontext():
            assert len(plan_run(run).stages) == number
