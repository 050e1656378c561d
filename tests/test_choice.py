"""SALT's choice of examples: scores, what batches are made of, hashes, bills, and runs that go on bit by bit."""

import collections
import dataclasses
import json
import math
import re
import shutil

import jax
import numpy as np
import pytest
import tiny

import growlm
from growlm.commands.probe import plan_probe
from growlm.data.batches import batches, next_windows, read_windows
from growlm.errors import InputError
from growlm.files import write_sealed
from growlm.models import flops_per_token, parameter_count
from growlm.training import chosen
from growlm.training.choice import ChoiceConfig, window_scores
from growlm.training.chosen import CHOICE_FILE, WINDOWS_FILE
from growlm.training.loop import training_batches
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.run import plan_run, train
from growlm.training.saved import find_saved
from growlm.training.stages import resolve

PARENT = {"scorer": "parent", "keep": 0.3, "top_k": 30}
STEPS = 3, 5  # before and after growth
WINDOW = tiny.LENGTH + 1


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def mixture(corpus, tmp_path_factory):
    """Two sources, the second with a third of the examples."""
    path = tmp_path_factory.mktemp("other") / "other.txt"
    path.write_text(" ".join(f"{number} squared is {number**2}." for number in range(4000)))
    return {"words": {"corpus": corpus, "weight": 2}, "squares": {"corpus": str(path), "weight": 1}}


def run_of(corpus, steps=STEPS[1], choice=PARENT, after=(), **options):
    """A run whose second stage is trained on windows that the first one's model has chosen."""
    second = tiny.grown(steps, choice=choice, **options)
    return tiny.run_config(corpus, tiny.stage(STEPS[0]), second, *after, checkpoint={"every_tokens": 1})


@pytest.fixture(scope="module")
def whole(mixture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(run_of(mixture), folder)
    return folder


def of_stage(folder, name):
    """A file of the stage with a choice."""
    (path,) = folder.glob(f"checkpoints/*/{name}")
    return path


def plain_scores(model, params, rows_BS, top_k):
    """The rule in NumPy: the median of losses, of which those count whose token is among the first k choices."""
    logits = np.asarray(growlm.apply(model, params, rows_BS[:, :-1]), np.float64)
    scores = []
    for row, targets in zip(logits, rows_BS[:, 1:], strict=True):
        losses = np.log(np.exp(row).sum(axis=-1)) - row[np.arange(len(row)), targets]
        first = np.argsort(-row, axis=-1)[:, :top_k]
        scores.append(np.median([loss if t in k else 0 for loss, t, k in zip(losses, targets, first, strict=True)]))
    return np.array(scores)


# The k-th first choice counts and the next one not: of 12 tokens every rank is there.
@pytest.mark.parametrize("top_k", [1, 6, 7, 12])
@pytest.mark.parametrize("length", [15, 16])
def test_scores_are_those_of_a_few_lines(top_k, length):
    model = growlm.ModelConfig(**tiny.MODEL | {"vocab": 12})
    params = growlm.init(model, jax.random.key(0))
    rows_BS = np.random.default_rng(0).integers(0, 12, (19, length + 1), np.int32)
    have = jax.jit(lambda *given: window_scores(model, top_k, "float32", None, *given))(params, rows_BS)
    want = plain_scores(model, params, rows_BS, top_k)
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)
    assert (want > 0).any() == (top_k > 1) and (want == 0).any() == (top_k < 12)


def test_the_windows_to_score_are_those_that_come_next():
    tokens = np.arange(23 * 5)
    source = {"seed": 3, "length": 4}
    for start, count in ((0, 23), (4, 7), (23 + 15, 8), (40, 23)):
        windows = next_windows(tokens, start=start, count=count, **source)
        rows = batches(tokens, batch=1, start=start, **source)
        until_the_epoch_ends = min(count, 23 - start % 23)
        for row in read_windows(tokens, 4, windows)[:until_the_epoch_ends]:
            np.testing.assert_array_equal(next(rows)[0], row)
        assert len(set(windows)) == count
    with pytest.raises(InputError):
        next_windows(tokens, start=0, count=24, **source)


def expected(folder, plan):
    """By source, the windows that should have been chosen, by the rule in NumPy, and the scores around the border."""
    stage, text = plan.stages[1], plan.texts[1]
    model, _, before = tiny.load_saved(folder, STEPS[0])
    found, examples, given = {}, {}, stage.given_at(stage.first_step)
    total = STEPS[1] * tiny.BATCH
    for name, own in text.trained.corpora.items():
        # How many examples of a mixture are of a source is tested in test_mixtures.
        examples[name] = stage.given_at(stage.last_step)[own.fingerprint] - given[own.fingerprint]
        scored = math.ceil(10 * examples[name] / 3)
        pool = next_windows(own.train, seed=0, length=tiny.LENGTH, start=given[own.fingerprint], count=scored)
        scores = plain_scores(model, before.params, read_windows(own.train, tiny.LENGTH, pool), PARENT["top_k"])
        found[name] = dict(zip(pool.tolist(), scores, strict=True))
    assert sum(examples.values()) == total
    return found, examples


def test_the_highest_of_every_source_are_chosen_and_only_they_are_in_batches(whole, mixture):
    plan = plan_run(run_of(mixture))
    stage, text = plan.stages[1], plan.texts[1]
    scores, examples = expected(whole, plan)
    kept = np.load(of_stage(whole, WINDOWS_FILE))
    report = json.loads(of_stage(whole, CHOICE_FILE).read_text())
    ends = np.cumsum([*report["chosen"].values()])
    by_source = dict(zip(report["chosen"], np.split(kept, ends[:-1]), strict=True))
    for name, own in text.trained.corpora.items():
        windows = by_source[own.fingerprint].tolist()
        assert len(windows) == len({*windows}) == examples[name] and {*windows} <= scores[name].keys()
        left = scores[name].keys() - {*windows}
        assert min(scores[name][w] for w in windows) >= max(scores[name][w] for w in left) - 1e-5
        assert len(left) > len(windows) and max(scores[name].values()) > 0

    mesh = make_mesh(MeshConfig())
    read = chosen.chosen_text(
        stage, text, plan.sources, mesh=mesh, store=whole / "checkpoints", folder=of_stage(whole, CHOICE_FILE).parent,
        say=lambda line: pytest.fail("nothing is chosen twice"),
    )  # fmt: skip
    source = training_batches(stage, read, mesh, stage.examples_at(stage.first_step))
    seen = collections.Counter(tuple(row) for _ in range(STEPS[1]) for row in np.asarray(next(source)).tolist())
    want = collections.Counter(
        tuple(row)
        for own in text.trained.corpora.values()
        for row in read_windows(own.train, tiny.LENGTH, by_source[own.fingerprint]).tolist()
    )
    assert seen == want  # in the stage's tokens every one comes once
    whole_order = [row.tolist() for _ in range(2) for row in np.asarray(next(source))]
    again = training_batches(stage, read, mesh, stage.examples_at(stage.last_step))
    assert [row.tolist() for _ in range(2) for row in np.asarray(next(again))] == whole_order


def test_the_next_stage_reads_all_windows_from_where_the_run_is(mixture):
    plan = plan_run(run_of(mixture, after=[tiny.grown(2, growth={"operator": "direct"})]))
    plain = plan_run(run_of(mixture, choice=None, after=[tiny.grown(2, growth={"operator": "direct"})]))
    mesh, rows = make_mesh(MeshConfig()), []
    for one in (plan, plain):
        stage, text = one.stages[2], one.texts[2]
        source = training_batches(stage, text, mesh, stage.examples_at(stage.first_step))
        rows.append(sorted(tuple(row) for _ in range(6) for row in np.asarray(next(source)).tolist()))
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_run_that_stops_after_every_step_ends_with_the_same_bits(whole, mixture, tmp_path):
    assert tiny.train_in_parts(run_of(mixture), tmp_path / "parts") > STEPS[1]
    ends = (tiny.checkpoints(folder / "checkpoints")[STEPS[0], sum(STEPS)] for folder in (whole, tmp_path / "parts"))
    tiny.assert_same_arrays(*map(tiny.read_checkpoint, ends))
    assert tiny.timeless(tmp_path / "parts") == tiny.timeless(whole)
    windows = [of_stage(folder, WINDOWS_FILE).read_bytes() for folder in (whole, tmp_path / "parts")]
    assert windows[0] == windows[1]


def test_the_choice_is_billed_where_the_stage_begins(whole, mixture):
    small, large = (growlm.ModelConfig(**tiny.MODEL | {"layers": layers}) for layers in (1, 2))
    scored = sum(json.loads(of_stage(whole, CHOICE_FILE).read_text())["scored"].values())
    assert 10 * 20 / 3 <= scored <= 10 * 20 / 3 + 2
    billed, before = scored * tiny.LENGTH, STEPS[0] * tiny.STEP
    by_step = {record["step"]: record for record in tiny.records(whole)}
    for step in (3, 4, 8):
        after = (step - 3) * tiny.STEP
        flops = parameter_count(small) * (6 * before + 2 * billed) + 6 * parameter_count(large) * after
        exact = flops_per_token(small, 16) * (before + billed / 3) + flops_per_token(large, 16) * after
        assert by_step[step]["flops"] == pytest.approx(flops, rel=1e-12)
        assert by_step[step]["flops_exact"] == pytest.approx(exact, rel=1e-12)
    assert tiny.read_json(whole / "choice-1.json")["flops"] == pytest.approx(2 * parameter_count(small) * billed)


def test_a_checkpoint_chooses_too_in_a_first_stage_and_is_read_once(whole, corpus, tmp_path):
    scorer = tmp_path / "scorer"
    shutil.copytree(whole, scorer)

    def config(steps, tokens=2 * tiny.STEP):
        choice = {"scorer": str(scorer), "keep": 0.5, "tokens": tokens}
        return tiny.run_config(corpus, tiny.stage(steps, choice=choice), checkpoint={"every_tokens": 1})

    train(config(3), tmp_path / "a")
    shutil.rmtree(scorer)
    train(config(5), tmp_path / "a")  # chosen windows come again
    assert find_saved(tmp_path / "a").step == 5
    model, tokens = find_saved(whole).model, 2 * 2 * tiny.STEP
    want = 2 * parameter_count(model) * tokens + 6 * parameter_count(growlm.ModelConfig(**tiny.MODEL)) * 5 * tiny.STEP
    assert tiny.records(tmp_path / "a")[-1]["flops"] == pytest.approx(want, rel=1e-12)
    with pytest.raises(InputError, match=r"choice.scorer must be a Hugging Face checkpoint or .*no folder"):
        train(config(3), tmp_path / "b")


def test_other_lengths_and_batches_of_the_windows_of_a_stage(corpus, tmp_path):
    longer = {"length": 24, "batch": 2, "tokens": 4 * 2 * 24}
    train(run_of(corpus, choice=PARENT, **longer), tmp_path / "run")
    windows = np.load(of_stage(tmp_path / "run", WINDOWS_FILE))
    assert len(windows) == 8 and windows.max() < 64_000 // 25

    def chosen_with(batch):
        stage = plan_run(run_of(corpus, **longer | {"batch": batch})).stages[1]
        return [*stage.windows.values()]

    assert chosen_with(2) == chosen_with(1) == [(8, 27)]


def test_only_what_chooses_is_in_a_hash(corpus):
    def stage_hash(steps=4, **choice):
        given = {"choice": {"keep": 0.5, "scorer_fingerprint": "a"} | choice} if choice else {}
        return resolve(tiny.run_config(corpus, tiny.stage(steps, **given)), "f")[0].stage_hash

    plain = stage_hash()
    assert plain == resolve(tiny.run_config(corpus, tiny.stage(4, choice=None)), "f")[0].stage_hash
    here = stage_hash(scorer="/here")
    assert here != plain
    assert here == stage_hash(scorer="/there") == stage_hash(scorer="/here", tokens=4 * tiny.STEP)
    assert here == stage_hash(5, scorer="/here", tokens=4 * tiny.STEP)
    changed = ({"scorer_fingerprint": "b"}, {"keep": 0.4}, {"top_k": 3}, {"tokens": 3 * tiny.STEP})
    assert len({here, *(stage_hash(**{"scorer": "/here"} | one) for one in changed)}) == 5
    assert stage_hash(5, scorer="/here") != here  # more tokens are more windows


def test_a_run_with_more_tokens_is_another_unless_the_choice_says_its_own(corpus, tmp_path):
    train(run_of(corpus, 2), tmp_path / "a")
    with pytest.raises(InputError, match=r"stages\[1\].choice.tokens is 128 there and 192 here"):
        train(run_of(corpus, 3), tmp_path / "a")


@pytest.mark.parametrize("damage", [lambda content: content[:-8], lambda content: content[:-1] + b"\1"])
def test_damaged_windows_are_one_line(whole, mixture, tmp_path, damage):
    shutil.copytree(whole, tmp_path / "run")
    path = of_stage(tmp_path / "run", WINDOWS_FILE)
    path.write_bytes(damage(path.read_bytes()))
    for checkpoint in path.parent.glob("checkpoints/*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(InputError, match=rf"{WINDOWS_FILE} must be as it was written, of {288} bytes, got 28"):
        train(run_of(mixture), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chosen": None}, "choice.json: chosen must be an object"),
        ({"chosen": {"a": "2"}}, "choice.json: chosen: a must be an integer"),
        ({"chosen": {"a": -1, "b": 4}}, "must have 3 numbers of windows"),
        ({"chosen": {"a": 4}}, r"must have 4 numbers of windows, got \(3,\) int64"),
        ({"bytes": 10**12}, "must be as it was written, of 1000000000000 bytes"),
    ],
)
def test_a_report_of_a_choice_that_growlm_has_not_written_is_one_line(tmp_path, changes, said):
    np.save(tmp_path / WINDOWS_FILE, np.arange(3))
    report = {"chosen": {"a": 3}} | chosen._stamp((tmp_path / WINDOWS_FILE).read_bytes())
    write_sealed(tmp_path / CHOICE_FILE, report)
    assert chosen._read(tmp_path) == {"a": [0, 1, 2]}
    write_sealed(tmp_path / CHOICE_FILE, report | changes)
    assert re.search(said, str(chosen._read(tmp_path)))


def test_windows_that_are_no_numbers_are_one_line(tmp_path):
    (tmp_path / WINDOWS_FILE).write_bytes(b"\x93NUMPY, or not")
    write_sealed(tmp_path / CHOICE_FILE, {"chosen": {"a": 1}} | chosen._stamp((tmp_path / WINDOWS_FILE).read_bytes()))
    assert "must be numbers of windows, got " in str(chosen._read(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 0.0}, "choice.keep must be > 0 and < 1, got 0.0"),
        ({"keep": 1.0}, "choice.keep must be > 0 and < 1, got 1.0"),
        ({"top_k": 0}, "choice.top_k must be >= 1, got 0"),
        ({"tokens": tiny.STEP - 1}, "choice.tokens must be at least one batch, 4 x 16 = 64, or 0, got 63"),
    ],
)
def test_a_wrong_choice_is_one_line(changes, message, corpus):
    with pytest.raises(InputError, match=message):
        run_of(corpus, choice=PARENT | changes)


def test_a_choice_without_a_model_or_without_tokens_is_one_line(corpus):
    with pytest.raises(InputError, match=r"stages\[0\].choice.scorer must be a checkpoint where no stage"):
        tiny.run_config(corpus, tiny.stage(3, choice=PARENT))
    with pytest.raises(InputError, match=r"stages\[1\].choice.tokens must be > 0 where the stage does not say"):
        tiny.run_config(corpus, tiny.stage(3), tiny.grown(0, choice=PARENT), budget_flops=1e9)


def test_a_choice_that_does_not_fit_its_text_or_tokens_is_one_line(corpus):
    with pytest.raises(
        InputError, match=r"stages\[1\].choice must score at most the [\d,]+ windows of '.*', got 20,000"
    ):
        plan_run(run_of(corpus, choice=PARENT | {"keep": 0.001}))
    with pytest.raises(InputError, match=r"vocabulary of stages\[1\].choice.scorer must be the stage's, 260, got 256"):
        plan_run(run_of(corpus, model=tiny.MODEL | {"layers": 2, "vocab": 260}))


def test_a_command_that_only_reads_a_run_takes_no_choice(whole, corpus):
    growth = {"operator": "probe", "options": {"candidates": ["direct"], "steps": 2}}
    with pytest.raises(InputError, match=r"stages\[1\].choice must be unset for growlm probe, got 'parent'"):
        plan_probe(run_of(corpus, growth=growth), whole)


def test_a_budget_pays_for_the_choice(corpus):
    config = run_of(corpus, choice=PARENT | {"tokens": 10 * tiny.STEP})
    last = dataclasses.replace(config.stages[1], tokens=0)
    stage, without = (
        resolve(dataclasses.replace(config, stages=(config.stages[0], one), budget_flops=9e7), "f")[1]
        for one in (last, dataclasses.replace(last, choice=None))
    )
    assert 5 < stage.steps < without.steps
    assert stage.cost_at(stage.last_step).flops <= 9e7 < stage.cost_at(stage.last_step + 1).flops


def test_how_many_are_scored():
    assert [ChoiceConfig("parent", keep).scored(3) for keep in (0.1, 0.5, 0.3, 0.9)] == [30, 6, 10, 4]
    assert ChoiceConfig("parent", 0.009).scored(9) == 1000  # by floats one more
