"""Compiling: no more of it for more layers, and none of it between two stages."""

import re
import threading
from collections import Counter

import jax
import pytest
import tiny
from representatives import few
from trees import exact_products

from growlm.growth.depth import ORDERS
from growlm.models import REMAT_POLICIES
from growlm.training import loop
from growlm.training.growing import lower_growth, lower_learning
from growlm.training.loop import step_specs
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.run import train
from growlm.training.stages import resolve
from growlm.training.step import lower_step

LAST = tiny.MODEL | {"layers": 2, "embed": 24, "heads": 6, "kv_heads": 3, "mlp": 32}
WIDE = {"embed": 22, "heads": 4, "kv_heads": 2, "mlp": 31}
RAMP = {"operator": "random", "options": {"mask_tokens": 2 * tiny.STEP}}
LEARN = {"operator": "learn", "options": {"steps": 2}}
GO_ON = threading.Event()  # never set


# --- The number of layers --------------------------------------------------------------------------------------------


def stage_of(before, layers, growth=None, remat="none", **options):
    """A stage that grows so many layers to so many, and in width."""
    second = tiny.grown(4, growth=growth or {"operator": "direct"}, model=tiny.MODEL | WIDE | {"layers": layers})
    config = tiny.run_config("none", tiny.stage(2, before), second | options, remat=remat)
    return resolve(config, "fingerprint")[1]


def operations(lowered):
    """How many there are of each kind in a program as it is given to the compiler; equal constants are one there."""
    found = Counter(re.findall(r"= \"?((?:stablehlo|sdy)\.\w+|call)", lowered.as_text()))
    del found["stablehlo.constant"]
    return found


def steps_of(stage):
    """The operations of each train step that a stage has, by sub-model."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    programs = step_specs(stage, stage.first_step)
    return {which: operations(lower_step(p, tiny.BATCH, tiny.LENGTH, mesh)) for which, p in programs.items()}


def growth_of(*args, **options):
    return operations(lower_growth(stage_of(*args, **options), make_mesh(MeshConfig(data=1), jax.devices()[:1])))


STEPS = {remat: {"remat": remat} for remat in REMAT_POLICIES} | {
    "microbatches": {"microbatches": 2},
    "frozen layers": {"frozen_layers": 1},
    "muon": {"optimizer": {"kind": "muon", "ema": 0.9}},
    "muon's parts": {"optimizer": {"kind": "muon", "muon": {"normalise_rows": True, "variance": "longer"}}},
    "a ramp": {"growth": RAMP},
    "two rates": {"schedule": {"at_growth": "continue", "rewarm_tokens": 9, "rewarm": "new"}},
    "what is new": {"growth": {"operator": "zero", "train": "new"}},
}


@pytest.mark.parametrize("case", few(STEPS, ("full", "microbatches", "muon", "a ramp", "two rates")))
def test_a_step_has_as_many_operations_whatever_the_number_of_layers(case):
    shallow, deep = (steps_of(stage_of(layers // 2, layers, **STEPS[case])) for layers in (4, 48))
    assert shallow == deep
    assert all(found["stablehlo.dot_general"] > 10 for found in deep.values())


def test_a_run_writes_out_as_many_layers_as_it_says():
    def products(unroll):
        config = tiny.run_config("none", tiny.stage(2, 4), unroll=unroll)
        (found,) = steps_of(resolve(config, "fingerprint")[0]).values()
        return found["stablehlo.dot_general"]

    one, two, four = map(products, (1, 2, 4))
    assert two - one == (four - two) / 2 > 10


def test_sub_models_have_the_same_operations_each():
    """A stage that draws sub-models compiles one step for each: their number is that of the blocks, by design."""
    shallow, deep = (steps_of(stage_of(layers // 2, layers, submodel_layers=layers // 2)) for layers in (4, 48))
    assert list(shallow.values()) == list(deep.values()) and len(deep) == 2


GROWTHS = {
    "direct": {"operator": "direct"},
    "interleaved": {"operator": "direct", "options": {"order": "interleave"}},
    "with noise": {"operator": "direct", "options": {"noise": 0.1}},
    "next layer": {"operator": "direct", "options": {"aki": True}},
    "mapped": {"operator": "direct", "optimizer_state": "map_aged"},
    "zero": {"operator": "zero"},
    "random": RAMP,
    "learn": LEARN,
}


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("factor", few([2, 4], [2]))
def test_a_growth_has_as_many_operations_whatever_the_number_of_layers(growth, factor):
    shallow, deep = (growth_of(layers // factor, layers, growth=GROWTHS[growth]) for layers in (5 * factor, 48))
    assert shallow == deep and deep.total() > 100


def test_learning_has_as_many_operations_whatever_the_number_of_layers():
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    shallow, deep = (
        list(map(operations, lower_learning(stage_of(layers // 2, layers, growth=LEARN), mesh))) for layers in (4, 48)
    )
    assert shallow == deep and deep[1]["stablehlo.dot_general"] > 10


@pytest.mark.parametrize("order", ORDERS)
def test_no_order_has_more_operations_for_more_layers(order):
    """Few runs of layers are as many slices, many are one gather: fewer operations, and as many from there on."""
    before, after = (4, 8) if order in ("stack", "stack_top", "interleave") else (4, 6)
    growth = {"operator": "direct", "options": {"order": order}}
    shallow, deep, deeper = (growth_of(times * before, times * after, growth=growth) for times in (1, 12, 24))
    assert deep.total() <= shallow.total() and deeper == deep


# --- Between two stages ----------------------------------------------------------------------------------------------


@pytest.fixture
def compiling():
    """What this thread traces, lowers and compiles, by where the run is; `compiling.now` says where."""

    class Compiling(dict):
        now = "before"

    found = Compiling()

    def listen(event, _, **about):
        if event.startswith("/jax/core/compile/") and threading.current_thread() is threading.main_thread():
            found.setdefault(found.now, []).append((event.rpartition("/")[2], about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_between_the_last_step_of_a_stage_and_the_first_of_the_next_nothing_is_compiled(
    tmp_path, monkeypatch, compiling
):
    """Not for fresh values under masks, a new averaged copy, Muon, mapped moments or learned maps."""
    step_of = loop.Steps.train

    def step_and_say_where(steps, state, tokens_BS):
        after, metrics = step_of(steps, state, tokens_BS)
        stage = steps._stage
        if after.step == stage.first_step + 1:
            jax.block_until_ready(metrics)
            compiling.now = f"in stage {stage.number}"
        if after.step == stage.last_step:
            compiling.now = f"after stage {stage.number}"
        return after, metrics

    monkeypatch.setattr(loop.Steps, "train", step_and_say_where)
    muon = {"optimizer": {"kind": "muon"}}
    averaged = {"optimizer": {"kind": "muon", "ema": 0.9}}
    ramped = RAMP | {"optimizer_state": "map"}
    config = tiny.run_config(
        tiny.write_corpus(tmp_path),
        tiny.stage(4, **muon),
        tiny.grown(4, growth=LEARN, model=tiny.MODEL | WIDE, **averaged),
        tiny.grown(4, growth=ramped, model=LAST, **muon),
    )
    with exact_products():
        train(config, tmp_path / "run", GO_ON)
    assert any(event == "backend_compile_duration" for event, _ in compiling["before"])  # or nothing is seen here
    assert {where: found for where, found in compiling.items() if where != "before"} == {}
    assert len([record for record in tiny.records(tmp_path / "run") if "pause_seconds" in record]) == 2
