"""The re-warm inside a running schedule: of all weights, or of what the growth added."""

import threading

import numpy as np
import pytest
import tiny

from growlm.errors import InputError
from growlm.growth.plan import slice_mask
from growlm.training.loop import step_specs
from growlm.training.run import train
from growlm.training.stages import resolve

STEP = tiny.STEP
GO_ON = threading.Event()  # never set
RUNNING = {"kind": "constant", "peak_lr": 1e-2, "at_growth": "continue"}
LARGER = tiny.MODEL | {"layers": 2, "mlp": 30}


def second(steps=5, **schedule):
    growth = {"operator": "direct", "optimizer_state": "map_aged"}
    return tiny.grown(steps, model=LARGER, growth=growth, schedule=RUNNING | schedule)


def planned(**schedule):
    return resolve(tiny.run_config("none", tiny.stage(2), second(**schedule)), "fingerprint")[1]


def test_the_rate_is_zero_at_the_growth_and_whole_after_the_re_warm():
    stage = planned(rewarm_tokens=4 * STEP)
    of_all = [(stage.learning_rate_at(step), stage.new_learning_rate_at(step)) for step in range(3, 8)]
    assert of_all == [pytest.approx((1e-2 * part, 1e-2 * part)) for part in (0, 1 / 4, 2 / 4, 3 / 4, 1)]
    stage = planned(rewarm_tokens=4 * STEP, rewarm="new")
    asymmetric = [(stage.learning_rate_at(step), stage.new_learning_rate_at(step)) for step in range(3, 8)]
    assert asymmetric == [pytest.approx((1e-2, 1e-2 * part)) for part in (0, 1 / 4, 2 / 4, 3 / 4, 1)]
    assert [spec.two_rates for spec in step_specs(stage, 2).values()] == [True]


def test_the_schedule_runs_on_under_the_re_warm():
    power = {"kind": "power", "warmup_tokens": 2 * STEP, "exponent": -1.0}
    stage = planned(rewarm_tokens=2 * STEP, **power)
    rates = [stage.learning_rate_at(step) for step in range(3, 7)]
    assert rates == pytest.approx([0, 0.5e-2 * 2 / 4, 1e-2 * 2 / 5, 1e-2 * 2 / 6])


def test_without_a_re_warm_a_stage_is_the_one_that_it_was():
    assert planned().stage_hash == planned(rewarm_tokens=0, rewarm="all").stage_hash
    assert len({planned(rewarm_tokens=STEP, rewarm=of).stage_hash for of in ("all", "new")}) == 2


@pytest.mark.parametrize(
    ("says", "make"),
    [
        ("schedule.rewarm must be one of all, new, got 'old'", lambda: planned(rewarm_tokens=9, rewarm="old")),
        ("schedule.rewarm_tokens must be >= 0, got -1", lambda: planned(rewarm_tokens=-1)),
        ("schedule.rewarm_tokens must be 0 where", lambda: planned(rewarm_tokens=9, at_growth="restart")),
        ("schedule.rewarm must be 'all' without schedule.rewarm_tokens", lambda: planned(rewarm="new")),
        (
            "schedule.rewarm_tokens must be 0 in a stage without growth, got 9",
            lambda: tiny.run_config("none", tiny.stage(2, schedule=RUNNING | {"rewarm_tokens": 9})),
        ),
    ],
)
def test_a_re_warm_that_cannot_be_is_one_line(says, make):
    with pytest.raises(InputError) as error:
        make()
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


def trained(corpus, folder, **schedule):
    """The parameters at every step of the second stage, by path, and its provenance; the folder keeps the records."""
    every = {"checkpoint": {"every_tokens": STEP, "max_to_keep": 99}}
    config = tiny.run_config(corpus, tiny.stage(2), second(steps=3, **schedule), **every)
    train(config, folder, GO_ON)
    states = {step: tiny.load_saved(folder, step)[2] for step in (3, 4, 5)}
    params = {step: tiny.copy_of(state.params) for step, state in states.items()}
    return params, tiny.copy_of(states[3].provenance)


def leaves(params, weight):
    for name in weight.path.split("/"):
        params = params[name]
    return params


@pytest.mark.slow
def test_what_waits_stays_to_the_bit_and_the_rest_moves(corpus, tmp_path):
    plain, provenance = trained(corpus, tmp_path / "plain")
    of_new, _ = trained(corpus, tmp_path / "new", rewarm_tokens=2 * STEP, rewarm="new")
    of_all, _ = trained(corpus, tmp_path / "all", rewarm_tokens=2 * STEP)
    waited = added = 0
    for weight in planned().config.model.weights:
        new = np.broadcast_to(np.asarray(slice_mask(weight, provenance)), leaves(plain[3], weight).shape)
        first = {
            name: leaves(params[3], weight) for name, params in (("plain", plain), ("new", of_new), ("all", of_all))
        }
        # The first update after growth: the old slices' is that without a re-warm, the new ones' is none.
        np.testing.assert_array_equal(first["new"][~new], first["plain"][~new], err_msg=weight.path)
        np.testing.assert_array_equal(first["new"][new], first["all"][new], err_msg=weight.path)
        waited += np.sum(first["all"] != first["plain"])
        added += np.sum(leaves(of_new[4], weight)[new] != first["new"][new])
    assert waited > 1000 and added > 1000
    recorded = [record for record in tiny.records(tmp_path / "new") if record["stage"] == 1]
    assert [(record["learning_rate"], record["learning_rate_new"]) for record in recorded] == [
        pytest.approx(pair) for pair in ((1e-2, 0), (1e-2, 0), (1e-2, 0.5e-2), (1e-2, 1e-2))
    ]
    assert not any("learning_rate_new" in record for record in tiny.records(tmp_path / "all"))


@pytest.mark.slow
def test_a_run_stopped_at_every_step_of_its_re_warm_ends_with_the_same_bits(corpus, tmp_path):
    parts = {"momentum_steps": 9, "normalise_rows": True, "coefficients": "polar_express", "variance": "longer"}
    muon = {"optimizer": {"kind": "muon", "muon": parts, "decay": ("matrices",), "cautious_decay": True}}
    further = second(steps=3, rewarm_tokens=2 * STEP, rewarm="new") | muon
    further["growth"]["optimizer_state"] = "keep_old"
    config = tiny.run_config(corpus, tiny.stage(1, **muon), further)
    train(config, tmp_path / "whole", GO_ON)
    assert tiny.train_in_parts(config, tmp_path / "parts") == 4
    assert tiny.timeless(tmp_path / "parts") == tiny.timeless(tmp_path / "whole")
    have, want = (tiny.read_checkpoint(tiny.checkpoints(tmp_path / name)[1, 4]) for name in ("parts", "whole"))
    tiny.assert_same_arrays(have, want)
