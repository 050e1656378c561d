"""Stages that begin with a growth: under masks, with learned maps, with an averaged copy; cut off and gone on."""

import dataclasses
import itertools
import json
import threading
from typing import Any

import jax
import numpy as np
import optax
import pytest
import tiny
from flax import linen as nn
from own_architecture import OWN
from representatives import few

import growlm
from growlm.data import batches, load_corpus, validation_batches
from growlm.errors import InputError
from growlm.growth import OPERATORS
from growlm.growth.state import apply_growth
from growlm.models import ARCHITECTURES, ModelConfig, next_token_loss, parameter_count
from growlm.models.layers import dense, weight
from growlm.training import growing, loop
from growlm.training.config import build_run, load_config, plain
from growlm.training.continuation import result_settings
from growlm.training.objectives import OBJECTIVES
from growlm.training.optimizer import OPTIMIZERS, make_optimizer
from growlm.training.own_code import own_code, source_of
from growlm.training.run import train
from growlm.training.schedules import SCHEDULES
from growlm.training.stages import resolve
from growlm.training.step import compile_steps, init_state
from growlm.training.sweep import plan_sweep

STEP = tiny.STEP
GO_ON = threading.Event()  # never set
WIDE = {"model": tiny.MODEL | {"layers": 2, "embed": 22, "heads": 4, "kv_heads": 2, "mlp": 31}}
LARGE = ModelConfig(**WIDE["model"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


def validation_at(folder, stage, step):
    (record,) = [r for r in tiny.records(folder) if (r["stage"], r["step"]) == (stage, step)]
    return record["val_loss"]


def saved_at(folder, first, step):
    """The parameters and the provenance of a checkpoint."""
    arrays = tiny.read_checkpoint(tiny.checkpoints(folder)[first, step])
    params = jax.eval_shape(lambda: growlm.init(LARGE, jax.random.key(0)))
    params = jax.tree_util.tree_map_with_path(lambda path, _: arrays["['params']" + jax.tree_util.keystr(path)], params)
    return params, {axis: arrays[f"['provenance']['{axis}']"] for axis in ("mlp", "stream", "heads", "layers")}


# --- Masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", few([{}, {"whole_blocks": True, "in_turn": True, "norm": "gain"}], [{}]), ids=str)
@pytest.mark.slow
def test_random_begins_as_the_source_and_ends_as_the_plain_model(corpus, tmp_path, monkeypatch, options):
    stepped = []  # under which ramp

    def compile_and_watch(program, *args):
        step, evaluate = compile_steps(program, *args)
        ramp = program.masks

        def watched(arrays, tokens, rate, provenance, progress):
            stepped.append((ramp and ramp.tokens, None if progress is None else progress.tolist()))
            return step(arrays, tokens, rate, provenance, progress)

        return watched, evaluate

    monkeypatch.setattr(loop, "compile_steps", compile_and_watch)
    growth = {"operator": "random", "options": {"mask_tokens": 3 * STEP} | options}
    second = tiny.grown(5, growth=growth, **WIDE)
    watching = {"evaluation": {"every_tokens": STEP, "batches": 1}}
    watching |= {"checkpoint": {"every_tokens": STEP, "max_to_keep": 9}}
    config = tiny.run_config(corpus, tiny.stage(2), second, **watching)
    train(config, tmp_path / "run", GO_ON)

    ramp = 3 * STEP
    third, two = pytest.approx(1 / 3), pytest.approx(2 / 3)
    opened = [[1, 0, 0, third], [1, 1, 0, two]] if "in_turn" in options else [[third] * 4, [two] * 4]
    assert stepped == [(None, None)] * 2 + [(ramp, [0] * 4), *((ramp, mask) for mask in opened)] + [(None, None)] * 2
    # The gain's factor is exact up to eps, the isometry altogether.
    near = 1e-4 if "norm" in options else 1e-5
    assert validation_at(tmp_path / "run", 1, 2) == pytest.approx(validation_at(tmp_path / "run", 0, 2), abs=near)

    stage = resolve(config, "fingerprint")[1]
    held_out = validation_batches(load_corpus(corpus).validation, count=1, batch=tiny.BATCH, length=tiny.LENGTH)
    for step, ramped in ((4, True), (5, False), (7, False)):
        params, provenance = saved_at(tmp_path / "run", 2, step)
        acts, scale = params, None
        if ramped:
            opening = stage.growth.masks.progress((step - 2) * STEP)
            acts, scale = stage.growth.masks.reparametrise(LARGE, params, provenance, opening)
            assert (scale is not None) == ("whole_blocks" in options)
            plain = float(next_token_loss(LARGE, params, held_out[0]))
            assert abs(plain - validation_at(tmp_path / "run", 1, step)) > 1e-4
        loss = float(next_token_loss(LARGE, acts, held_out[0], block_scale=scale))
        assert validation_at(tmp_path / "run", 1, step) == pytest.approx(loss, abs=1e-5)


def test_after_a_ramp_the_step_is_that_of_a_run_without_one():
    ramped = tiny.grown(4, growth={"operator": "random", "options": {"mask_tokens": 2 * STEP}}, **WIDE)
    stage = resolve(tiny.run_config("none", tiny.stage(2), ramped), "fingerprint")[1]
    assert [stage.progress_at(step) is None for step in (2, 3, 4, 5, 6)] == [False, False, True, True, True]
    plain = tiny.grown(4, growth={"operator": "random"}, **WIDE)
    stage = resolve(tiny.run_config("none", tiny.stage(2), plain), "fingerprint")[1]
    assert [stage.progress_at(step) for step in (2, 3, 6)] == [None] * 3


# --- The optimizer's state, before anything is trained ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "how", "says"),
    [
        ({}, {"kind": "muon"}, "map", "reset where the optimizer changes at growth"),
        ({"kind": "muon"}, {}, "map_aged", "reset where the optimizer changes at growth"),
        (
            {"kind": "plain"},
            {"kind": "plain"},
            "keep_old",
            "reset or map for an optimizer without ages, got 'keep_old'",
        ),
        ({"kind": "odd"}, {"kind": "odd"}, "map", r"reset: optimizer moment must be one of .* got 'nu_max'"),
        (
            {"kind": "muon"},
            {"kind": "muon", "muon": {"coefficients": "polar_express", "momentum_steps": 9}},
            "map",
            "reset where the optimizer changes at growth",
        ),
    ],
)
@pytest.mark.parametrize("learned", [False, True])
def test_a_state_that_the_optimizer_cannot_hold_is_said_before_training(
    corpus, tmp_path, monkeypatch, before, after, how, says, learned
):
    for name, make in {"plain": optax.scale_by_adam, "odd": optax.scale_by_amsgrad}.items():
        monkeypatch.setitem(OPTIMIZERS, name, lambda config, model, make=make: make())
    growth = {"operator": "learn", "options": {"steps": 1}} if learned else {"operator": "direct"}
    second = tiny.grown(2, growth=growth | {"optimizer_state": how}, optimizer=after)
    config = tiny.run_config(corpus, tiny.stage(2, optimizer=before), second)
    with pytest.raises(InputError, match=rf"^stages\[1\]\.growth\.optimizer_state must be {says}"):
        train(config, tmp_path / "run", GO_ON)
    assert not (tmp_path / "run").exists()


def test_a_stage_has_the_coefficients_of_its_own_optimizer():
    """optax holds them in the state, as arrays; they are of the stage's config and not of the one before."""
    three, four = ({"kind": "muon", "muon": {"coefficients": "polar_express", "steps": steps}} for steps in (3, 4))
    growth = {"operator": "direct", "optimizer_state": "map"}
    run = tiny.run_config("none", tiny.stage(2, optimizer=three), tiny.grown(2, growth=growth, optimizer=four))
    configs = [stage.config for stage in resolve(run, "f")]
    after = make_optimizer(configs[1].optimizer, configs[1].model)
    models = [config.model for config in configs]
    state = init_state(models[0], configs[0].optimizer, 0)
    grown, _ = growlm.growth.grow_state(state, *models, after, "direct", "map")
    (have, want) = (
        leaf.opt_state[1].inner_states["muon"].inner_state[0].ns_coeffs
        for leaf in (grown, init_state(models[1], configs[1].optimizer, 0))
    )
    np.testing.assert_array_equal(have, want)


# --- Cut off and gone on ---------------------------------------------------------------------------------------------


def test_a_run_stopped_at_every_step_ends_with_the_same_bits(corpus, tmp_path, monkeypatch):
    """In the middle of a ramp, with an averaged copy, ages, rates and freezing by provenance, and Muon."""
    optimizer = {"ema": 0.5, "kind": "muon", "learning_rates": {"new": 2.0, "gains": 0.5}}
    growth = {"operator": "random", "options": {"mask_tokens": 3 * STEP}, "optimizer_state": "map_aged", "train": "new"}
    first = tiny.stage(2, optimizer={"kind": "muon"})
    second = tiny.grown(5, growth=growth, optimizer=optimizer, frozen_layers=1, **WIDE)
    config = tiny.run_config(corpus, first, second)
    train(config, tmp_path / "whole", GO_ON)
    assert tiny.train_in_parts(config, tmp_path / "parts") == 7
    assert tiny.timeless(tmp_path / "parts") == tiny.timeless(tmp_path / "whole")
    have, want = (tiny.read_checkpoint(tiny.checkpoints(tmp_path / name)[2, 7]) for name in ("parts", "whole"))
    tiny.assert_same_arrays(have, want)
    assert any(path.startswith("['ema']") for path in want)


# --- The averaged copy -----------------------------------------------------------------------------------------------


def test_the_averaged_copy_starts_at_the_parameters_grows_and_is_dropped(corpus, tmp_path):
    with_ema, zero = {"optimizer": {"ema": 0.5}}, {"growth": {"operator": "zero"}}
    stages = [tiny.stage(2), tiny.grown(2, **with_ema), tiny.grown(2, 4, **with_ema, **zero), tiny.grown(2, 5)]
    train(tiny.run_config(corpus, *stages, log_every_steps=9), tmp_path / "run", GO_ON)
    recorded = {(r["stage"], r["step"]): r for r in tiny.records(tmp_path / "run")}
    assert [key for key, record in recorded.items() if "val_loss_ema" in record] == [(1, 2), (1, 4), (2, 4), (2, 6)]
    assert recorded[1, 2]["val_loss_ema"] == recorded[1, 2]["val_loss"]
    assert abs(recorded[1, 4]["val_loss_ema"] - recorded[1, 4]["val_loss"]) > 1e-3
    assert recorded[2, 4]["val_loss_ema"] == pytest.approx(recorded[1, 4]["val_loss_ema"], abs=1e-5)
    for (_, step), path in tiny.checkpoints(tmp_path / "run").items():
        assert any(name.startswith("['ema']") for name in tiny.read_checkpoint(path)) == (step in (4, 6))


# --- Learned maps ----------------------------------------------------------------------------------------------------


def test_learning_the_maps_is_on_the_stages_own_batches_and_is_paid_for(corpus, tmp_path, monkeypatch):
    given = []

    def watched(*args, **options):
        ahead, copy = itertools.tee(options.pop("batches"))
        result = apply_growth(*args, batches=ahead, **options)
        given.extend(itertools.islice(copy, 3))
        return result

    monkeypatch.setattr(growing, "apply_growth", watched)
    growth = {"operator": "learn", "options": {"steps": 3, "peak": 1e-2, "warmup": 0}}
    stages = tiny.stage(2), tiny.grown(2, batch=2, tokens=4 * 32, growth=growth)
    train(tiny.run_config(corpus, *stages), tmp_path / "run", GO_ON)

    shape = {"batch": 2, "length": tiny.LENGTH}
    expected = itertools.islice(batches(load_corpus(corpus).train, seed=0, start=8, **shape), 3)
    np.testing.assert_array_equal(given, list(expected))
    end, begin = [r for r in tiny.records(tmp_path / "run") if r["step"] == 2]
    n = parameter_count(ModelConfig(**tiny.MODEL | {"layers": 2}))
    assert begin["flops"] - end["flops"] == 6 * n * 3 * 32 and begin["tokens"] == end["tokens"]
    # Attention costs 6 x layers x heads x head_dim x (length + 1) a token, lookup and gains nothing.
    assert begin["flops_exact"] - end["flops_exact"] == (6 * (n - 256 * 16 - 5 * 16) + 2 * 6 * 16 * 17) * 3 * 32
    report = tiny.read_json(tmp_path / "run" / "growth-1.json")
    assert report["learning"]["steps"] == 3 and report["learning"]["tokens"] == 96
    assert report["learning"]["flops"] == 6 * n * 96
    assert report["learning"]["loss_after"] != report["learning"]["loss_before"]
    assert int(tiny.read_checkpoint(tiny.checkpoints(tmp_path / "run")[2, 6])["['examples']"]) == 8 + 4 * 2


def test_a_sweep_counts_what_learning_costs(corpus):
    growth = {"operator": "learn", "options": {"steps": 3}}
    config = tiny.sweep_config(corpus, {"a": [tiny.stage(2), tiny.grown(2, growth=growth)]}, baseline="a")
    plan = plan_sweep(config)
    (base, grown) = (parameter_count(ModelConfig(**tiny.MODEL | {"layers": layers})) for layers in (1, 2))
    assert plan.flops() == (6 * (2 * base + (3 + 2) * grown) * STEP, 0)


def test_maps_of_layers_that_are_not_trained_are_g_stack(corpus, tmp_path):
    for name, growth in {"learn": {"operator": "learn", "options": {"steps": 0}}, "stack": {}}.items():
        growth = {"operator": "direct", "optimizer_state": "map"} | growth
        train(tiny.run_config(corpus, tiny.stage(2, 2), tiny.grown(2, 4, growth=growth)), tmp_path / name, GO_ON)
    ours, theirs = (tiny.read_checkpoint(tiny.checkpoints(tmp_path / name)[2, 4]) for name in ("learn", "stack"))
    tiny.assert_same_arrays(ours, theirs)
    assert tiny.timeless(tmp_path / "learn") == tiny.timeless(tmp_path / "stack")


# --- Cost ------------------------------------------------------------------------------------------------------------


def test_frozen_layers_cost_a_forward_pass_by_the_exact_count():
    costs = {}
    for frozen in (0, 1):
        config = tiny.run_config("none", tiny.stage(2, 3, frozen_layers=frozen))
        costs[frozen] = resolve(config, "fingerprint")[0].cost_at(2)
    block = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24  # query, key and value, out, mlp
    assert costs[0].flops == costs[1].flops
    saved = 4 * block + 4 * 16 * 17
    assert costs[0].flops_exact - costs[1].flops_exact == pytest.approx(saved * 2 * STEP)


# --- Presets ---------------------------------------------------------------------------------------------------------


def test_a_preset_is_kept_as_written_and_acts_as_what_it_stands_for():
    given = {"operator": "g_stack"}, {"operator": "direct", "options": {"order": "stack"}}
    one, other = (tiny.run_config("none", tiny.stage(2), tiny.grown(4, growth=growth)) for growth in given)
    assert [stage.stage_hash for stage in resolve(one, "x")] == [stage.stage_hash for stage in resolve(other, "x")]
    assert result_settings(plain(one)) == result_settings(plain(other)) and plain(one) != plain(other)
    pro = one.stages[1].growth
    assert (pro.operator, pro.options, pro.optimizer_state, pro.train) == ("g_stack", {}, None, None)
    pro = build_growth({"operator": "llama_pro"}).resolved
    assert (pro.operator, pro.options, pro.optimizer_state, pro.train) == ("zero", {"order": "expand"}, "reset", "new")
    loud = build_growth(
        {"operator": "lemon", "options": {"split_imbalance": 0.1}, "optimizer_state": "map", "train": "all"}
    ).resolved
    assert loud.options == {"order": "interleave", "zero_residual": True, "split_imbalance": 0.1}
    assert (loud.optimizer_state, loud.train) == ("map", "all")


def test_an_option_by_its_old_name_is_the_same_stage():
    """Its hash knows the old name, so that stages from before are found."""
    old, new = ({"operator": "direct", "options": {name: True}} for name in ("silent", "zero_residual"))
    one, other = (tiny.run_config("none", tiny.stage(2), tiny.grown(4, growth=growth)) for growth in (old, new))
    stages = [resolve(run, "x")[1] for run in (one, other)]
    assert stages[0].stage_hash == stages[1].stage_hash
    assert stages[0].settings["growth"]["options"] == {"silent": True}


def build_growth(growth):
    return tiny.run_config("none", tiny.stage(2), tiny.grown(4, growth=growth)).stages[1].growth


# --- Names and hashes ------------------------------------------------------------------------------------------------

FORMERLY = {"kind": "cosine", "peak": 0.02, "final": 0.0}
SCHEDULE = {"kind": "cosine", "peak_lr": 0.02, "end_lr_ratio": 0.0}
PINNED = ["17425d001607", "ee5f0e6bea3b", "69e53f2d2688"]


def test_former_names_are_read_and_are_the_same_stage():
    old, new = (tiny.run_config("c", tiny.stage(2, schedule=schedule)) for schedule in (FORMERLY, SCHEDULE))
    assert old == new and plain(old)["stages"][0]["schedule"]["peak_lr"] == 0.02
    (stage,) = resolve(old, "f")
    assert stage.settings["schedule"] == {"peak": 0.02, "final": 0.0, "horizon_tokens": 2 * STEP}
    both = tiny.stage(2, schedule=SCHEDULE | {"peak": 0.02})
    with pytest.raises(InputError, match=r"schedule\.peak_lr must be given once, got 'peak', its former name, too"):
        tiny.run_config("c", both)


def test_a_written_config_with_former_names_is_one_line_on_stderr_each(tmp_path, capsys):
    path = tmp_path / "old.py"
    tiny.write_config(path, tiny.run("c", tiny.stage(2, schedule=FORMERLY), tiny.grown(2, schedule=FORMERLY)))
    settings = load_config(str(path), ["stages[1].schedule.peak=0.5", "stages[0].schedule.end_lr_ratio=0.25"])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ", 2)[2].split(";")[0] for line in lines] == [
        "schedule.peak is schedule.peak_lr now",
        "schedule.final is schedule.end_lr_ratio now",
    ]
    first, second = (stage.schedule for stage in build_run(settings).stages)
    assert (first.peak_lr, first.end_lr_ratio) == (0.02, 0.25) and (second.peak_lr, second.end_lr_ratio) == (0.5, 0.0)
    tiny.write_config(path, tiny.run("c", tiny.stage(2, schedule=SCHEDULE)))
    load_config(str(path), ["stages[0].schedule.peak_lr=0.5"])
    assert not capsys.readouterr().err


def test_a_run_of_an_older_growlm_goes_on(corpus, tmp_path):
    """Its config.json has former names, and presets as what they stand for."""
    config = tiny.run_config(corpus, tiny.stage(2), tiny.grown(1, 4, growth={"operator": "g_stack"}))
    train(config, tmp_path / "run", GO_ON)
    trained, path = tiny.timeless(tmp_path / "run"), tmp_path / "run" / "config.json"
    held = tiny.read_json(path)
    for stage in held["stages"]:
        stage["schedule"]["peak"], stage["schedule"]["final"] = (
            stage["schedule"].pop(name) for name in ("peak_lr", "end_lr_ratio")
        )
    held["stages"][1]["growth"] = plain(config.stages[1].growth.resolved)
    path.write_text(json.dumps(held))
    train(config, tmp_path / "run", GO_ON)
    assert tiny.timeless(tmp_path / "run") == trained
    assert tiny.read_json(path) == json.loads(json.dumps(plain(config)))


def test_the_hashes_of_stages_stay_what_they_were():
    """Of growlm 0.2's first commit: stored runs go on."""
    optimizer = {"kind": "muon", "ema": 0.5, "learning_rates": {"new": 2.0}}
    first = tiny.stage(2, schedule={"kind": "wsd", "peak": 0.02, "final": 0.5, "warmup_tokens": STEP})
    growth = {"operator": "msg", "options": {"ramp_tokens": STEP}, "train": "new"}
    second = tiny.grown(5, growth=growth, optimizer=optimizer, frozen_layers=1, **WIDE)
    third = tiny.grown(2, 4, growth={"operator": "g_stack"}, model=WIDE["model"] | {"layers": 4}, microbatches=2)
    config = tiny.run_config("c", first, second, third, dtype="bfloat16", document_mask=True, seed=3)
    assert [stage.stage_hash for stage in resolve(config, "fingerprint")] == PINNED


def test_a_window_and_a_scaled_rope_are_part_of_a_hash_only_where_there_are_any():
    """What is at its default is in no hash: runs from before there was such a setting are found."""

    def settings(**own):
        stage = tiny.stage(2)
        run = tiny.run_config("c", stage | {"model": stage["model"] | own})
        return resolve(run, "f")[0].settings["model"]

    assert settings() == {"architecture": "llama"} | tiny.MODEL
    assert settings(qk_norm=False, rope_theta=1e4) == settings() != settings(qk_norm=True)
    assert settings(sliding_window=4)["sliding_window"] == 4
    assert settings(rope_scaling={"kind": "linear", "factor": 2})["rope_scaling"]["factor"] == 2


OWN_CODE = {
    "an operator": (
        "from growlm.growth import OPERATORS\nfrom growlm.growth.operators import direct\n\n\n"
        "def mine(source, target, key=None):\n    return direct(source, target, key, order='{}')\n\n\n"
        "OPERATORS['mine'] = mine\n",
        ("stack", "interleave"),
        {"growth": {"operator": "mine"}},
    ),
    "an operator that binds an option": (
        "from functools import partial\nfrom growlm.growth import OPERATORS\n"
        "from growlm.growth.operators import direct\n\nOPERATORS['mine'] = partial(direct, order='{}')\n",
        ("stack", "interleave"),
        {"growth": {"operator": "mine"}},
    ),
    "an objective": (
        "from growlm.training.objectives import OBJECTIVES, Objective\n\n"
        "OBJECTIVES['mine'] = Objective(weights=lambda config, tokens_BS: tokens_BS[:, 1:] != {})\n",
        (3, 4),
        {"objective": {"kind": "mine"}},
    ),
    "an optimizer": (
        "import optax\nfrom growlm.training.optimizer import OPTIMIZERS\n\n"
        "OPTIMIZERS['mine'] = lambda config, model: optax.scale_by_lion({})\n",
        (0.9, 0.8),
        {"optimizer": {"kind": "mine"}},
    ),
    "a schedule": (
        "from growlm.training.schedules import SCHEDULES\n\n"
        "SCHEDULES['mine'] = lambda schedule, tokens, horizon, batch: {}\n",
        (0.5, 0.25),
        {"schedule": {"kind": "mine"}},
    ),
}


@pytest.mark.parametrize("what", OWN_CODE)
def test_what_is_ones_own_and_edited_is_another_stage(what, tmp_path, monkeypatch):
    """growlm's own are known by their names, as ever."""
    text, values, settings = OWN_CODE[what]
    for table in (OPERATORS, OBJECTIVES, OPTIMIZERS, SCHEDULES):
        monkeypatch.setitem(table, "mine", None)

    def hashes(value):
        path = tmp_path / f"of_{value}.py"
        path.write_text(f"{text.format(value)}\n\ndef get_config():\n    return {{}}\n")
        load_config(str(path), [])
        return [
            stage.stage_hash for stage in resolve(tiny.run_config("c", tiny.stage(2), tiny.grown(2, **settings)), "f")
        ]

    one, again, other = hashes(values[0]), hashes(values[0]), hashes(values[1])
    assert one == again and one[0] == other[0] and one[1] != other[1]
    assert source_of("direct") is None


def test_an_architecture_of_ones_own_that_is_edited_is_another_stage(monkeypatch):
    """In its modules, its weights and its factors; growlm's own are known by their names."""

    class Mlp(nn.Module):
        config: Any
        dtype: Any

        @nn.compact
        def __call__(self, x_ND, context):
            return 2 * dense(jax.nn.relu(dense(x_ND, weight(self, "up"))), weight(self, "down")), {}

    def stage_hash(period, **changes):
        architecture = dataclasses.replace(OWN, period=period, **changes)
        monkeypatch.setitem(ARCHITECTURES, "own", architecture)
        model = {"architecture": "own", "layers": 1, "embed": 8, "heads": 2, "head_dim": 4, "mlp": 8, "vocab": 16}
        return resolve(tiny.run_config("c", tiny.stage(2) | {"model": model}), "f")[0].stage_hash

    try:
        (attention, mlp), *_ = OWN.period
        wider = dataclasses.replace(mlp.weights[0], gain=2.0), *mlp.weights[1:]
        periods = [((attention, one),) for one in (mlp, dataclasses.replace(mlp, module=Mlp))]
        periods.append(((attention, dataclasses.replace(mlp, weights=wider)),))
        found = [*map(stage_hash, periods), stage_hash(OWN.period, logit_scale=lambda config: 0.5)]
        assert len(set(found)) == 4 and found[0] == stage_hash(OWN.period)
    finally:
        OWN.config.architecture = OWN  # a replaced one takes the config class
    assert own_code(tiny.run_config("c", tiny.stage(2)).stages[0]) == {}
