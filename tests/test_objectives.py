"""Objectives of stages: weights of tokens, teachers by schedule, what they cost, and runs that go on bit by bit.

Run as a script, on 8 devices: the losses of a run with a teacher on meshes.
"""

import dataclasses
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from eight import on_eight_devices
from trees import exact_products

import growlm
from growlm.errors import InputError
from growlm.models import ModelConfig, flops_per_token, loss, parameter_count
from growlm.models.loss import Teacher, cross_entropy
from growlm.models.sharding import AXES
from growlm.report.outcomes import outcome
from growlm.report.records import read
from growlm.training import objectives
from growlm.training.loop import held_out_batches, training_batches
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.objectives import OBJECTIVES, Objective, ObjectiveConfig
from growlm.training.optimizer import OptimizerConfig, make_optimizer
from growlm.training.run import plan_run, train
from growlm.training.saved import find_saved
from growlm.training.stages import resolve
from growlm.training.step import StepSpec, train_step

MODEL = ModelConfig(**tiny.MODEL | {"layers": 1})
DISTILL = {"kind": "distill", "teacher": "parent", "weight": 0.7, "temperature": 2.0}


def plain(x_ND, head_DV, target_N, weight_N, teacher):
    """(1 - w) CE + w KL of every row by optax, times the row's weight."""
    logits_NV = loss.logits(x_ND, head_DV, 0.7)
    hard_N = optax.softmax_cross_entropy_with_integer_labels(logits_NV, target_N)
    soft_NV = jax.nn.softmax(loss.logits(teacher.x, teacher.head, teacher.cap) / teacher.temperature)
    soft_N = optax.kl_divergence(jax.nn.log_softmax(logits_NV), soft_NV)
    return (weight_N * ((1 - teacher.weight) * hard_N + teacher.weight * soft_N)).mean()


@pytest.mark.parametrize(
    ("rows", "vocab", "most", "weight", "cap"),
    [(1, 2, 1, 0.0, None), (7, 5, 10, 0.3, 0.9), (8, 9, 80, 1.0, None)],
)
def test_any_chunks_give_the_plain_divergence_and_its_gradients(rows, vocab, most, weight, cap):
    rng = np.random.default_rng(rows)
    with jax.enable_x64(True), exact_products(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK", most)
        x_ND, head_DV = rng.standard_normal((rows, 3)), rng.standard_normal((3, vocab))
        target_N, weight_N = rng.integers(0, vocab, rows), rng.random(rows)
        teacher = Teacher(rng.standard_normal((rows, 5)), rng.standard_normal((5, vocab)), weight, cap, 1.7)
        want = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(x_ND, head_DV, target_N, weight_N, teacher)
        ours = partial(cross_entropy, target_BT=target_N[None], cap=0.7, weight_BT=weight_N[None], teacher=teacher)
        have = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(x_ND, head_DV)
        np.testing.assert_allclose(ours(x_ND, head_DV), want[0], rtol=1e-11, atol=1e-12)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), have, want)


def test_the_teachers_logits_are_never_all_in_memory():
    x_ND, head_DV = jnp.ones((512, 8)), jnp.ones((8, 4096))
    teacher = Teacher(jnp.ones((512, 4)), jnp.ones((4, 4096)), 0.5)

    def temporary(most):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loss, "CHUNK", most)
            both = jax.grad(lambda x, head: cross_entropy(x, head, jnp.zeros((1, 512), int), teacher=teacher))
            return jax.jit(both).lower(x_ND, head_DV).compile().memory_analysis().temp_size_in_bytes

    assert temporary(2**16) < 5 * 4 * 2**16 + 3 * 4 * head_DV.size < 4 * 512 * 4096 < temporary(2**26)


def test_the_weight_of_a_teacher_follows_its_schedule():
    tokens = (0, 50, 99, 100, 500)
    constant = ObjectiveConfig(**DISTILL | {"weight_tokens": 100})
    linear = dataclasses.replace(constant, decay="linear")
    assert [constant.teacher_weight(at) for at in tokens] == [0.7, 0.7, 0.7, 0, 0]
    np.testing.assert_allclose([linear.teacher_weight(at) for at in tokens], [0.7, 0.35, 0.007, 0, 0])
    assert ObjectiveConfig(**DISTILL).teacher_weight(10**12) == 0.7
    assert ObjectiveConfig().teacher_weight(0) == 0
    for objective, batch in ((constant, 30), (constant, 50), (linear, 7), (ObjectiveConfig(**DISTILL), 3)):
        taught = [objective.teacher_weight(step * batch) > 0 for step in range(20)]
        assert [objective.taught_steps(n, batch) for n in range(21)] == [sum(taught[:n]) for n in range(21)]


@pytest.fixture
def every_third(monkeypatch):
    """An objective that a user adds: tokens by what they are."""
    weights = Objective(weights=lambda config, tokens_BS: (tokens_BS[:, 1:] % 3 == 0) * 2.0)
    monkeypatch.setitem(objectives.OBJECTIVES, "thirds", weights)
    return ObjectiveConfig(kind="thirds")


def test_weights_of_tokens_are_a_row_and_count_alike_in_every_microbatch(every_third):
    tokens_BS = np.random.default_rng(0).integers(0, 256, (4, 17))
    tokens_BS[0] = 1  # its microbatch has fewer tokens that count

    def weighted(params):
        logits = growlm.apply(MODEL, params, tokens_BS[:, :-1])
        each_BT = optax.softmax_cross_entropy_with_integer_labels(logits, tokens_BS[:, 1:])
        counts_BT = tokens_BS[:, 1:] % 3 == 0
        return (counts_BT * each_BT).sum() / counts_BT.sum()

    params = growlm.init(MODEL, jax.random.key(0))
    want, gradients = jax.jit(jax.value_and_grad(weighted))(params)
    optimizer = OptimizerConfig()
    for microbatches in (1, 4):
        spec = StepSpec(MODEL, optimizer, objective=every_third, microbatches=microbatches)
        arrays = (params, make_optimizer(optimizer, MODEL).init(params), None)
        _, metrics = jax.jit(partial(train_step, spec))(arrays, tokens_BS, np.float32(0.1), {})
        np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradients), rtol=1e-5)


def test_a_batch_in_which_nothing_counts_changes_nothing(every_third):
    weights_BT = every_third.row.token_weights(every_third, jnp.ones((2, 5), int))
    np.testing.assert_array_equal(weights_BT, np.zeros((2, 4)))


# --- Runs ------------------------------------------------------------------------------------------------------------


def run_of(corpus: str, steps: int = 6, **objective):
    """Three steps of a small model, of which what it grows into learns for some steps."""
    return tiny.run_config(
        corpus,
        tiny.stage(3),
        tiny.grown(steps, objective=DISTILL | {"weight_tokens": 2 * tiny.STEP} | objective),
        checkpoint={"every_tokens": 1, "max_to_keep": 1},
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def distilled(corpus, tmp_path_factory):
    """A run whose second stage begins with the model before growth as its teacher, and goes on without."""
    folder = tmp_path_factory.mktemp("distilled") / "run"
    train(run_of(corpus), folder)
    return folder


def test_the_first_loss_of_a_run_is_of_the_model_before_growth(distilled, corpus):
    model, _, before = tiny.load_saved(distilled, 3)
    two, plan = dataclasses.replace(model, layers=2), plan_run(run_of(corpus))
    tokens_BS = next(training_batches(plan.stages[1], plan.texts[1], make_mesh(MeshConfig()), int(before.examples)))
    logits = growlm.apply(two, growlm.grow(before.params, model, two), tokens_BS[:, :-1])
    soft = jax.nn.softmax(growlm.apply(model, before.params, tokens_BS[:, :-1]) / 2)
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, tokens_BS[:, 1:]).mean()
    divergence = optax.kl_divergence(jax.nn.log_softmax(logits), soft).mean()
    first = next(record["loss"] for record in tiny.records(distilled) if record["step"] == 4)
    np.testing.assert_allclose(first, 0.3 * hard + 0.7 * divergence, rtol=1e-5)


def test_what_is_validated_is_the_next_token(distilled):
    model, _, after = tiny.load_saved(distilled)
    plan = plan_run(find_saved(distilled).stage.run)
    (source,) = held_out_batches(plan.stages[1], plan.texts[1], make_mesh(MeshConfig()))
    losses = [growlm.models.next_token_loss(model, after.params, tokens_BS) for tokens_BS in source.batches]
    np.testing.assert_allclose(tiny.records(distilled)[-1]["val_loss"], np.mean(losses), rtol=1e-6)


@pytest.mark.slow
def test_a_run_with_a_teacher_that_stops_after_every_step_ends_with_the_same_bits(distilled, corpus, tmp_path):
    assert tiny.train_in_parts(run_of(corpus), tmp_path / "parts") > 6
    whole, parts = (tiny.checkpoints(folder / "checkpoints")[3, 9] for folder in (distilled, tmp_path / "parts"))
    tiny.assert_same_arrays(tiny.read_checkpoint(parts), tiny.read_checkpoint(whole))
    assert tiny.timeless(tmp_path / "parts") == tiny.timeless(distilled)


def test_the_forward_pass_of_a_teacher_is_billed_while_it_runs(distilled):
    small, large = MODEL, dataclasses.replace(MODEL, layers=2)
    by_step = {record["step"]: record for record in tiny.records(distilled)}
    for step in (3, 4, 5, 6, 9):
        taught = min(step - 3, 2) * tiny.STEP
        before, after = 3 * tiny.STEP, (step - 3) * tiny.STEP
        flops = 6 * (parameter_count(small) * before + parameter_count(large) * after) + (
            2 * parameter_count(small) * taught
        )
        exact = flops_per_token(small, 16) * (before + taught / 3) + flops_per_token(large, 16) * after
        assert by_step[step]["flops"] == pytest.approx(flops, rel=1e-12)
        assert by_step[step]["flops_exact"] == pytest.approx(exact, rel=1e-12)


def test_a_teacher_adds_no_parameters_to_a_run_and_older_records_are_read_off_their_flops(distilled):
    """Two of the six steps are taught, and a forward pass is a third of training: that reads as a ninth of it."""
    small, large = (parameter_count(dataclasses.replace(MODEL, layers=layers)) for layers in (1, 2))
    (run,) = read(distilled).runs.values()
    assert run.parameters == large == outcome("run", run).params
    older = [{name: value for name, value in one.items() if name != "parameters"} for one in run.metrics]
    assert dataclasses.replace(run, metrics=older).parameters == round(large + small / 9)


def test_a_budget_pays_for_the_teacher(corpus):
    config = run_of(corpus)
    last = dataclasses.replace(config.stages[1], tokens=0)
    for weight_tokens in (0, 2 * tiny.STEP, 10**9):
        objective = dataclasses.replace(last.objective, weight_tokens=weight_tokens)
        stages = (config.stages[0], dataclasses.replace(last, objective=objective))
        stage = resolve(dataclasses.replace(config, stages=stages, budget_flops=9e7), "f")[1]
        assert stage.steps > 5
        assert stage.cost_at(stage.last_step).flops <= 9e7 < stage.cost_at(stage.last_step + 1).flops


def test_only_an_objective_that_is_not_the_default_is_in_a_hash(corpus):
    def hashes(**objective):
        return resolve(tiny.run_config(corpus, tiny.stage(3, objective=objective)), "f")[0].stage_hash

    plain = resolve(tiny.run_config(corpus, tiny.stage(3)), "f")[0].stage_hash
    of_teacher = {"kind": "distill", "teacher": "/here", "teacher_fingerprint": "a"}
    assert hashes(kind="next_token") == plain != hashes(**of_teacher)
    assert hashes(**of_teacher) == hashes(**of_teacher | {"teacher": "/there"})
    assert hashes(**of_teacher) != hashes(**of_teacher | {"teacher_fingerprint": "b"})
    assert hashes(**of_teacher) != hashes(**of_teacher | {"temperature": 3.0})


@pytest.mark.slow
def test_a_checkpoint_teaches_too_wherever_it_lies(distilled, corpus, tmp_path):
    """It is read again where a run goes on; what it holds counts, and once it is not needed it may be gone."""
    teacher = tmp_path / "teacher"
    shutil.copytree(distilled, teacher)

    def config(place, steps=4):
        objective = {"kind": "distill", "teacher": str(place), "weight_tokens": 2 * tiny.STEP}
        return tiny.run_config(corpus, tiny.stage(steps, objective=objective))

    train(config(teacher), tmp_path / "a")
    records = tiny.records(tmp_path / "a")
    model = find_saved(distilled).model
    want = 6 * parameter_count(MODEL) * 4 * tiny.STEP + 2 * parameter_count(model) * 2 * tiny.STEP
    assert records[-1]["flops"] == pytest.approx(want, rel=1e-12)
    moved = shutil.move(teacher, tmp_path / "moved")
    train(config(moved, 5), tmp_path / "a")  # the same run, two steps after the teacher's last
    shutil.rmtree(moved)
    train(config(moved, 6), tmp_path / "a")
    assert tiny.records(tmp_path / "a")[-1]["step"] == find_saved(tmp_path / "a").step == 6
    with pytest.raises(InputError, match=r"objective.teacher must be a Hugging Face checkpoint or .*no folder"):
        train(config(moved), tmp_path / "b")


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"kind": "next"}, "objective.kind"),
        ({"kind": "distill"}, "objective.teacher must be 'parent' or a checkpoint, got None"),
        ({"weight": 0.2}, "objective.weight must be unset with kind 'next_token', got 0.2"),
        (DISTILL | {"weight": 1.5}, "objective.weight must be"),
        (DISTILL | {"temperature": 0.0}, "objective.temperature must be > 0"),
        (DISTILL | {"decay": "linear"}, "objective.weight_tokens must be > 0 where the weight decays, got 0"),
        (DISTILL, r"stages\[0\].objective.teacher must be a checkpoint where no stage before it was trained"),
    ],
)
def test_a_wrong_objective_is_one_line(objective, message, corpus):
    with pytest.raises(InputError, match=message):
        tiny.run_config(corpus, tiny.stage(3, objective=objective))


def test_a_teacher_of_another_vocabulary_is_one_line(corpus):
    model = tiny.MODEL | {"layers": 2, "vocab": 260}
    second = tiny.grown(3, objective=DISTILL) | {"model": model}
    with pytest.raises(InputError, match=r"vocabulary of stages\[1\].objective.teacher must be the .*, 260, got 256"):
        plan_run(tiny.run_config(corpus, tiny.stage(3), second))


def test_the_table_names_what_a_row_reads():
    fields = {field.name for field in dataclasses.fields(ObjectiveConfig)}
    assert all({*row.settings} <= fields - {"kind"} for row in OBJECTIVES.values())


def wide(corpus: str, **options):
    """A run that 8 devices can share."""
    model = tiny.MODEL | {"embed": 32, "heads": 8, "kv_heads": 8, "head_dim": 4, "mlp": 48}
    shape = {"batch": 16, "tokens": 3 * 16 * tiny.LENGTH, "microbatches": 2}
    second = tiny.grown(3, **shape, model=model | {"layers": 2}, objective=DISTILL)
    return tiny.run_config(corpus, tiny.stage(3, **shape, model=model), second, **options)


@pytest.mark.slow
def test_a_mesh_gives_what_one_device_gives(corpus, tmp_path):
    train(wide(corpus), tmp_path / "one")
    for of_mesh in on_eight_devices(__file__, tmp_path, corpus):
        np.testing.assert_allclose(of_mesh, tiny.losses(tmp_path / "one"), rtol=2e-5)


def main():
    folder, corpus = Path(sys.argv[1]), sys.argv[2]
    for spec in (meshes := ("8x1x1", "2x2x2")):
        mesh = dict(zip(AXES, map(int, spec.split("x")), strict=True))
        train(wide(corpus, mesh=mesh), folder / spec)
    print(json.dumps([tiny.losses(folder / spec) for spec in meshes]))


if __name__ == "__main__":
    main()
