"""What training does: schedules, addresses, the update, checkpoints, records, and stages that runs share."""

import dataclasses
import json
import math
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import growlm
from growlm.data import batches, load_corpus, validation_batches
from growlm.errors import InputError, StoppedError
from growlm.models import ModelConfig, next_token_loss, parameter_count
from growlm.training import loop
from growlm.training import run as run_module
from growlm.training.checkpoint import Checkpoints
from growlm.training.optimizer import OptimizerConfig
from growlm.training.run import train
from growlm.training.schedules import ScheduleConfig, learning_rate
from growlm.training.stages import resolve
from growlm.training.step import abstract_state, compile_steps, init_state, run_keys

STEP = tiny.STEP
SMALL, LARGE = (ModelConfig(**tiny.MODEL | {"layers": layers}) for layers in (1, 2))
GO_ON = threading.Event()  # never set


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


def plan(*stages, **options):
    """The resolved stages of a run on a corpus that need not exist."""
    return resolve(tiny.run_config("none", *stages, **options), "fingerprint")


# --- Schedules -------------------------------------------------------------------------------------------------------

SCHEDULES = {
    "cosine": (
        {"end_lr_ratio": 0.1, "warmup_tokens": 100},
        {0: 0.0, 50: 1.0, 100: 2.0, 350: 0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2, 600: 1.1, 1100: 0.2, 9999: 0.2},
    ),
    "wsd": (
        {"end_lr_ratio": 0.1, "warmup_tokens": 110, "decay": 0.5},
        {55: 1.0, 110: 2.0, 111: 2.0, 550: 2.0, 825: 1.1, 1100: 0.2, 9999: 0.2},
    ),
    "constant": ({"warmup_tokens": 100}, {25: 0.5, 100: 2.0, 1100: 2.0, 9999: 2.0}),
    "power": ({"warmup_tokens": 100, "exponent": -0.5}, {50: 1.0, 100: 2.0, 400: 1.0, 1600: 0.5, 10_000: 0.2}),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule_at_warm_up_peak_end_and_after(kind):
    options, expected = SCHEDULES[kind]
    schedule = ScheduleConfig(kind=kind, peak_lr=2.0, **options)
    assert {tokens: learning_rate(schedule, tokens, 1100) for tokens in expected} == pytest.approx(expected)


def test_the_power_scheduler_is_the_papers():
    """arXiv 2408.13359: a 4, b -0.51, at most 0.02, here of a batch of 128 sequences and 1e12 tokens."""
    schedule = ScheduleConfig("power_scheduler", peak_lr=0.02, end_lr_ratio=0.0, warmup_tokens=10**7, decay=0.1)
    rate = {tokens: learning_rate(schedule, int(tokens), 10**12, batch=128) for tokens in (5e6, 1e7, 1e8, 1e10, 9e11)}
    law = {tokens: 128 * 4 * tokens**-0.51 for tokens in rate}
    assert rate == pytest.approx({5e6: 0.01, 1e7: 0.02, 1e8: 0.02, 1e10: 512 * 10**-5.1, 9e11: law[9e11]})
    # Over the last tenth equal tokens are equal factors, down to a thousandth of where it began.
    left = [learning_rate(schedule, int(tokens), 10**12, batch=128) / law[9e11] for tokens in (9.5e11, 1e12, 2e12)]
    assert left == pytest.approx([1e-3**0.5, 1e-3, 1e-3])
    lasting = dataclasses.replace(schedule, decay=0.0)  # no decay: the law goes on past the horizon
    assert learning_rate(lasting, 2 * 10**12, 10**12, batch=128) == pytest.approx(512 * 2e12**-0.51)
    small = dataclasses.replace(schedule, amplitude=1e-4)  # never capped: the warm-up ends on the law
    assert learning_rate(small, 5 * 10**6, 10**12, batch=128) == pytest.approx(128e-4 * 1e7**-0.51 / 2)


def test_the_power_scheduler_of_a_stage_takes_its_batch():
    schedule = {"kind": "power_scheduler", "peak_lr": 1.0, "amplitude": 1e-2, "exponent": -1.0, "decay": 0.25}
    (stage,) = plan(tiny.stage(4, schedule=schedule))
    assert stage.learning_rate_at(2) == pytest.approx(tiny.BATCH * 1e-2 / (2 * STEP))
    assert address(tiny.stage(4, schedule=schedule)) != address(tiny.stage(9, schedule=schedule))


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_a_schedule_decays_to_zero(kind):
    schedule = {"kind": kind, "peak_lr": 1.0, "end_lr_ratio": 0.0}
    assert plan(tiny.stage(4, schedule=schedule))[0].learning_rate_at(4) == 0.0


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_a_schedule_without_warm_up_starts_at_the_peak(kind):
    assert learning_rate(ScheduleConfig(kind=kind, peak_lr=2.0, warmup_tokens=0), 0, 1100) == 2.0


def test_the_constants_of_a_schedule_without_decay_or_horizon_do_no_harm():
    stable = ScheduleConfig(kind="wsd", peak_lr=2.0, decay=0.0)
    assert [learning_rate(stable, tokens, 1100) for tokens in (1099, 1100, 1200)] == [2.0] * 3
    assert learning_rate(ScheduleConfig(kind="cosine", peak_lr=2.0, warmup_tokens=1100), 1100, 1100) == 2.0


def rates(stages):
    """Of every stage, the rate of its first and its last step."""
    return [(stage.learning_rate_at(stage.first_step + 1), stage.learning_rate_at(stage.last_step)) for stage in stages]


def test_restart_counts_from_the_start_of_the_stage():
    schedule = {"kind": "cosine", "peak_lr": 1.0, "warmup_tokens": 2 * STEP, "at_growth": "restart"}
    second, third = tiny.grown(8, schedule=schedule), tiny.grown(16, 4, schedule=schedule)
    stages = plan(tiny.stage(4, schedule=schedule), second, third)
    assert rates(stages) == [pytest.approx((0.5, 0.1))] * 3
    assert [stage.schedule_start for stage in stages] == [0, 4 * STEP, 12 * STEP]


def test_continue_counts_from_where_the_earlier_schedule_began():
    first = {"kind": "constant", "peak_lr": 1.0, "warmup_tokens": 4 * STEP}
    power = {"kind": "power", "peak_lr": 1.0, "warmup_tokens": 4 * STEP, "exponent": -0.5, "at_growth": "continue"}
    stages = plan(tiny.stage(4, schedule=first), tiny.grown(12, schedule=power), tiny.grown(48, 4, schedule=power))
    assert [stage.schedule_start for stage in stages] == [0, 0, 0]
    assert rates(stages) == [pytest.approx(pair) for pair in ((0.25, 1.0), (0.8**0.5, 0.5), (17**-0.5 * 2, 0.25))]


def test_continue_after_a_restart_counts_from_that_restart():
    restart = {"kind": "cosine", "peak_lr": 1.0, "warmup_tokens": 2 * STEP, "end_lr_ratio": 0.0}
    further = restart | {"at_growth": "continue"}
    second, third = tiny.grown(6, schedule=restart), tiny.grown(4, 4, schedule=further)
    stages = plan(tiny.stage(4, schedule=restart), second, third)
    assert [stage.schedule_start for stage in stages] == [0, 4 * STEP, 4 * STEP]
    # From that start it is 10 steps to the end, 2 of them warm-up: the first of the last 4 is 5/8 of the way down.
    assert rates(stages)[2] == pytest.approx(((1 + math.cos(math.pi * 5 / 8)) / 2, 0.0))


def test_a_horizon_of_its_own_ends_the_schedule_where_it_says():
    schedule = {"kind": "wsd", "peak_lr": 1.0, "horizon_tokens": 20 * STEP, "decay": 0.5, "end_lr_ratio": 0.0}
    assert rates(plan(tiny.stage(15, schedule=schedule))) == [pytest.approx((1.0, 0.5))]


# --- Addresses -------------------------------------------------------------------------------------------------------

CONSTANT = {"kind": "constant", "peak_lr": 1e-2}
COSINE = {"kind": "cosine", "peak_lr": 1e-2}


def address(*stages, fingerprint="fingerprint", **options):
    return resolve(tiny.run_config("none", *stages, **options), fingerprint)[-1].stage_hash


def test_equal_settings_have_an_equal_address():
    assert address(tiny.stage(4)) == address(tiny.stage(4))
    assert address(tiny.stage(4), tiny.grown(4)) == address(tiny.stage(4), tiny.grown(4))


@pytest.mark.parametrize(
    "schedule",
    [
        CONSTANT,
        {"kind": "power", "warmup_tokens": 10},
        COSINE | {"horizon_tokens": 5000},
        {"kind": "wsd", "horizon_tokens": 5000},
    ],
)
def test_where_a_stage_stops_is_not_in_its_address(schedule):
    assert address(tiny.stage(4, schedule=schedule)) == address(tiny.stage(9, schedule=schedule))
    grown = address(tiny.stage(4), tiny.grown(4, schedule=schedule))
    assert grown == address(tiny.stage(4), tiny.grown(9, schedule=schedule))


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_where_a_stage_stops_is_in_its_address_if_the_rate_depends_on_it(kind):
    schedule = {"kind": kind}
    assert address(tiny.stage(4, schedule=schedule)) != address(tiny.stage(9, schedule=schedule))
    # A horizon that is the stage's own end says the same in other words.
    spelled = schedule | {"horizon_tokens": 4 * STEP}
    assert address(tiny.stage(4, schedule=schedule)) == address(tiny.stage(4, schedule=spelled))


def test_what_changes_the_result_changes_the_address():
    base, order = tiny.stage(4), {"operator": "direct", "options": {"order": "interleave"}}
    variants = [
        address(base, tiny.grown(4)),
        address(base, tiny.grown(4), seed=1),
        address(base, tiny.grown(4), fingerprint="another text"),
        address(base, tiny.grown(4), dtype="bfloat16"),
        address(tiny.stage(5), tiny.grown(4)),  # the same stage, left at another point
        address(tiny.stage(4, schedule=COSINE), tiny.grown(4)),
        address(base, tiny.grown(4, growth=order)),
        address(base, tiny.grown(4, growth={"operator": "direct", "optimizer_state": "map"})),
        address(base, tiny.grown(4, layers=3)),
        address(base, tiny.grown(4, batch=2)),
        address(base, tiny.grown(4, length=8)),
        address(base, tiny.grown(4, schedule=CONSTANT | {"peak_lr": 2e-2})),
        address(base, tiny.grown(4, optimizer={"weight_decay": 0.0})),
        address(base, tiny.grown(4, optimizer={"kind": "muon"})),
        address(base, tiny.grown(4, optimizer={"ema": 0.5})),
        address(base, tiny.grown(4, optimizer={"learning_rates": {"new": 0.5}})),
        address(base, tiny.grown(4, growth={"operator": "direct", "train": "new"})),
        address(base, tiny.grown(4, frozen_layers=1)),
        address(base, tiny.grown(4, submodel_layers=1)),
        address(base, tiny.grown(4, submodel_layers=2)),
        address(tiny.stage(4, layers=2)),
    ]
    assert len(set(variants)) == len(variants)


def test_what_only_watches_does_not_change_the_address():
    plain = address(tiny.stage(4))
    assert plain == address(tiny.stage(4), log_every_steps=7)
    assert plain == address(tiny.stage(4), evaluation={"every_tokens": 100, "batches": 1})
    assert plain == address(tiny.stage(4), checkpoint={"every_tokens": 100, "max_to_keep": 9})


# --- The update ------------------------------------------------------------------------------------------------------


def by_path(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.slow
def test_five_updates_are_those_of_optax_adamw(corpus, tmp_path):
    schedule = {"kind": "constant", "peak_lr": 1e-2, "warmup_tokens": 3 * STEP}
    config = tiny.run_config(corpus, tiny.stage(5, schedule=schedule), seed=3)
    train(config, tmp_path / "run", GO_ON)

    def loss_of(params, tokens):
        logits = growlm.apply(SMALL, params, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    params = growlm.init(SMALL, jax.random.split(jax.random.key(3))[0])
    adamw = optax.adamw(lambda count: 1e-2 * jnp.minimum(1.0, (count + 1) / 3), b1=0.9, b2=0.95, weight_decay=0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    state = optimizer.init(params)
    stream = batches(load_corpus(corpus).train, seed=3, batch=tiny.BATCH, length=tiny.LENGTH, start=0)
    step = jax.jit(jax.value_and_grad(loss_of))
    expected = []
    for tokens, _ in zip(stream, range(5), strict=False):
        loss, gradients = step(params, tokens)
        expected.append((float(loss), float(optax.tree.norm(gradients))))
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)

    recorded = tiny.records(tmp_path / "run")[1:]
    assert [(record["loss"], record["grad_norm"]) for record in recorded] == [pytest.approx(pair) for pair in expected]
    assert max(norm for _, norm in expected) > 1  # clipped at least once
    assert [record["learning_rate"] for record in recorded] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2, 1e-2])
    trained = tiny.read_checkpoint(tiny.checkpoints(tmp_path / "run")[0, 5])
    for path, value in by_path({"params": params}).items():
        np.testing.assert_allclose(trained[path], value, rtol=0, atol=1e-6, err_msg=path)


# --- Checkpoints -----------------------------------------------------------------------------------------------------


def at_step(state, step):
    return dataclasses.replace(state, step=np.int64(step))


@pytest.fixture(scope="module")
def state():
    return init_state(SMALL, OptimizerConfig(), 0)


@pytest.fixture
def saved(tmp_path, state):
    """A folder with a checkpoint of `state` at step 0."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    checkpoints.save(state)
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


def test_a_checkpoint_gives_back_every_bit_and_counts_beyond_32_bits(saved, state):
    counters = {"step": np.int64(3), "tokens": np.int64(300_000_000_001), "examples": np.int64(2**40 + 1)}
    large = dataclasses.replace(state, **counters, key=jax.random.key(7))
    saved.save(large)
    saved.wait()
    restored = saved.restore(3, abstract_state(SMALL, OptimizerConfig()))
    assert {name: getattr(restored, name) for name in counters} == counters
    assert all(isinstance(getattr(restored, name), np.int64) for name in counters)
    assert jnp.array_equal(jax.random.key_data(restored.key), jax.random.key_data(large.key))
    assert jax.tree.structure(restored) == jax.tree.structure(large)
    for part in ("params", "opt_state"):
        have, want = (tiny.copy_of(by_path(getattr(each, part))) for each in (restored, large))
        tiny.assert_same_arrays(have, want)


def test_what_is_stored_in_other_shapes_is_refused_not_padded(saved):
    with pytest.raises(InputError, match=r"\S+ of checkpoint \S+checkpoints/0 must be \(\(2, .*, got \(\(1, "):
        saved.restore(0, abstract_state(LARGE, OptimizerConfig()))
    narrow = ModelConfig(**tiny.MODEL | {"mlp": 23})
    with pytest.raises(InputError, match="/mlp/"):
        saved.restore(0, abstract_state(narrow, OptimizerConfig()))


def test_what_is_stored_in_another_dtype_is_refused_not_cast(saved, state):
    def half(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16)

    like = dataclasses.replace(state, params=jax.tree.map(half, state.params))
    with pytest.raises(InputError, match=r"params/\S+ of .* must be .*bfloat16.*, got .*float32"):
        saved.restore(0, like)


def test_what_is_not_stored_or_stored_too_much_is_refused(saved, state):
    tied = ModelConfig(**tiny.MODEL | {"tie_embeddings": True})
    with pytest.raises(InputError, match=r"/head of .* must be None, got \("):
        saved.restore(0, abstract_state(tied, OptimizerConfig()))
    biased = ModelConfig(**tiny.MODEL | {"qkv_bias": True})
    with pytest.raises(InputError, match=r"_bias of .* must be .*, got None"):
        saved.restore(0, abstract_state(biased, OptimizerConfig()))


def test_a_manager_that_has_not_saved_restores_too(saved, state, tmp_path):
    again = Checkpoints(tmp_path / "checkpoints", 2)
    assert jnp.array_equal(again.restore(0, state).params["embedding"], state.params["embedding"])
    again.close()


def test_the_last_few_and_those_where_runs_leave_are_kept(tmp_path, state):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2, keep_steps=(2, 3))
    for step in range(1, 8):
        checkpoints.save(at_step(state, step))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3, 6, 7]
    stamp = (tmp_path / "checkpoints" / "3").stat().st_mtime_ns
    checkpoints.save(at_step(state, 3))  # there already: not written again
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3", "6", "7"]
    assert (tmp_path / "checkpoints" / "3").stat().st_mtime_ns == stamp


def test_a_save_under_way_is_not_changed_by_the_steps_that_follow(tmp_path):
    """The step donates its state: a save that reads it later would write what came after, or freed memory."""
    model = dataclasses.replace(SMALL, embed=128, mlp=512, vocab=4096)  # 16 MB of state: no write is over at once
    like, state = abstract_state(model, OptimizerConfig()), init_state(model, OptimizerConfig(), 0)
    update = jax.jit(lambda trees: jax.tree.map(lambda leaf: leaf * 2 + 1, trees), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 9)
    copies, under_way = {}, []
    for _ in range(4):
        copies[int(state.step)] = tiny.copy_of((state.params, state.opt_state))
        checkpoints.save(state)
        saving = tmp_path / "checkpoints" / str(state.step)
        for _ in range(3):
            state = state.advanced((*update((state.params, state.opt_state)), None), 1, 1)
        jax.block_until_ready(state.params)
        under_way.append(not saving.exists())
    checkpoints.wait()
    assert any(under_way)  # otherwise this test has seen nothing
    for step, copy in copies.items():
        restored = checkpoints.restore(step, like)
        tiny.assert_same_arrays(tiny.copy_of(by_path((restored.params, restored.opt_state))), by_path(copy))
    checkpoints.close()


# --- Records ---------------------------------------------------------------------------------------------------------


def test_records_are_a_step_late_and_complete_and_count_tokens_and_flops(corpus, tmp_path, monkeypatch):
    written = []  # of every step, when it is sent off: the last one on record

    def compile_and_watch(*args, **kwargs):
        step, evaluate = compile_steps(*args, **kwargs)

        def watched(*args):
            (path,) = (tmp_path / "run").glob("checkpoints/*/metrics.jsonl")
            written.append([json.loads(line)["step"] for line in path.read_text().splitlines()][-1])
            return step(*args)

        return watched, evaluate

    monkeypatch.setattr(loop, "compile_steps", compile_and_watch)
    config = tiny.run_config(corpus, tiny.stage(7), evaluation={"every_tokens": 4 * STEP, "batches": 2})
    train(config, tmp_path / "run", GO_ON)
    # Step 1 is sent off with step 0 on record, step 3 before step 2 is; after the evaluation at 4 nothing is pending.
    assert written == [0, 0, 1, 2, 4, 4, 5]
    recorded = tiny.records(tmp_path / "run")
    assert [record["step"] for record in recorded] == list(range(8))
    assert [record["step"] for record in recorded if "val_loss" in record] == [0, 4, 7]
    assert recorded[0]["loss"] is None and all(math.isfinite(record["loss"]) for record in recorded[1:])
    assert all(record["tokens_per_second"] > 0 and record["grad_norm"] > 0 for record in recorded[1:])
    seconds = [record["seconds"] for record in recorded]
    assert seconds == sorted(seconds) and seconds[-1] > 0


def test_records_of_two_stages_count_on(corpus, tmp_path):
    config = tiny.run_config(corpus, tiny.stage(4), tiny.grown(3, batch=2), log_every_steps=3)
    train(config, tmp_path / "run", GO_ON)
    recorded = tiny.records(tmp_path / "run")
    assert [(r["stage"], r["step"]) for r in recorded] == [(0, 0), (0, 3), (0, 4), (1, 4), (1, 6), (1, 9), (1, 10)]
    tokens = {(0, 0): 0, (0, 3): 3 * 64, (0, 4): 4 * 64, (1, 4): 256, (1, 6): 320, (1, 9): 416, (1, 10): 448}
    assert {(r["stage"], r["step"]): r["tokens"] for r in recorded} == tokens
    n, m = parameter_count(SMALL), parameter_count(LARGE)
    for record in recorded:
        first, second = min(record["tokens"], 256), max(record["tokens"] - 256, 0)
        assert record["flops"] == 6 * n * first + 6 * m * second
        # Attention costs 6 x layers x heads x head_dim x (length + 1) a token, the lookup nothing.
        lookup, attention = 256 * 16 + 16, 6 * 16 * 17
        gains = 2 * 16
        exact = (6 * (n - lookup - gains) + attention) * first + (6 * (m - lookup - 2 * gains) + 2 * attention) * second
        assert record["flops_exact"] == exact
    home = tiny.checkpoints(tmp_path / "run")[4, 10]
    arrays = tiny.read_checkpoint(home)
    assert [int(arrays[f"['{name}']"]) for name in ("step", "tokens", "examples")] == [10, 448, 4 * 4 + 6 * 2]


# --- Growth in a run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer_state", ["map", "map_aged", "reset"])
def test_the_optimizer_state_is_mapped_or_reset_at_growth(corpus, tmp_path, monkeypatch, optimizer_state):
    begun = []

    def stop_after_growth(stage, state, **settings):
        begun.append(state)
        if stage.parent:
            raise StoppedError("seen enough")
        return loop.train_stage(stage, dataclasses.replace(state), **settings)

    monkeypatch.setattr(run_module, "train_stage", stop_after_growth)
    growth = {"operator": "direct", "options": {"order": [0, 1, 1]}, "optimizer_state": optimizer_state}
    config = tiny.run_config(corpus, tiny.stage(3, layers=2), tiny.grown(2, layers=3, growth=growth))
    with pytest.raises(StoppedError):
        train(config, tmp_path / "run", GO_ON)

    report = tiny.read_json(tmp_path / "run" / "growth-1.json")
    assert (report["optimizer_state"], report["step"], report["tokens"]) == (optimizer_state, 3, 3 * STEP)
    assert report["order"] == [0, 1, 1]
    before, grown = tiny.read_checkpoint(tiny.checkpoints(tmp_path / "run")[0, 3]), begun[1]
    assert (grown.step, grown.tokens, grown.examples) == (3, 3 * STEP, 3 * tiny.BATCH)
    adam = grown.opt_state[1]
    ages = {int(age) for ages in jax.tree.leaves(adam.ages) for age in ages}
    assert ages == {0 if optimizer_state == "reset" else 3}  # a copy is as old as what it copies
    trees = {"['params']": grown.params, "['opt_state'][1]['mu']": adam.mu, "['opt_state'][1]['nu']": adam.nu}
    for name, tree in trees.items():
        for path, value in by_path(tree).items():
            if name != "['params']" and optimizer_state == "reset":
                assert not value.any(), name + path
            else:
                old = before[name + path]
                assert old.any()
                np.testing.assert_array_equal(
                    value, old[jnp.array([0, 1, 1])] if "blocks" in path else old, name + path
                )


def test_validation_in_batches_of_its_own_size_gives_the_same_loss(corpus, tmp_path):
    losses = {}
    for batch, count in ((0, 2), (2, 4)):
        config = tiny.run_config(corpus, tiny.stage(3), evaluation={"batches": count, "batch": batch})
        train(config, tmp_path / str(batch), GO_ON)
        losses[batch] = [r["val_loss"] for r in tiny.records(tmp_path / str(batch)) if r.get("val_loss")]
    assert len(losses[0]) == 2
    assert losses[2] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize(("given", "same"), [({"batch": 2, "length": 8}, True), ({"batch": 2}, False)])
def test_losses_are_of_the_same_text_where_batch_and_length_of_validation_are_given(corpus, tmp_path, given, same):
    """A growth that keeps the function changes batch and length: the loss stays what it was, on the same text."""
    growth = {"operator": "zero"}
    config = tiny.run_config(
        corpus, tiny.stage(1), tiny.grown(1, batch=8, length=8, growth=growth), evaluation={"batches": 2} | given
    )
    train(config, tmp_path / "run", GO_ON)
    recorded = tiny.records(tmp_path / "run")
    before, after = ([r["val_loss"] for r in recorded if r["stage"] == stage] for stage in (0, 1))
    assert (before[-1] == pytest.approx(after[0], rel=1e-6)) is same
    if same:
        held_out = validation_batches(load_corpus(corpus).validation, count=2, batch=2, length=8)
        params = growlm.init(SMALL, run_keys(0)[0])
        assert before[0] == pytest.approx(float(next_token_loss(SMALL, params, np.concatenate(held_out))), rel=1e-6)


@pytest.mark.parametrize(("key", "says"), [("batch", "100000 x "), ("length", "= 400004 ")])
def test_a_validation_batch_must_fit_the_text(corpus, key, says):
    config = tiny.run_config(corpus, tiny.stage(3), evaluation={key: 100_000})
    with pytest.raises(InputError, match=rf"{says}.*validation tokens"):
        run_module.plan_run(config)


def test_a_folder_of_growlm_0_1_0_is_refused_and_not_trained_anew(corpus, tmp_path):
    """It had one architecture, and did not name it; its stages have other addresses."""
    home = tmp_path / "run" / "checkpoints" / "0123456789ab"
    home.mkdir(parents=True)
    (home / "stage.json").write_text(json.dumps({"model": tiny.MODEL, "address": home.name}))
    before = tiny.snapshot(tmp_path)
    with pytest.raises(InputError, match=r"a stage of growlm 0\.1\.0"):
        train(tiny.run_config(corpus, tiny.stage(2)), tmp_path / "run", threading.Event())
    assert tiny.snapshot(tmp_path) == before
