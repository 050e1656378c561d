"""Stages with texts of their own: what each is trained and validated on, and what a run says of it."""

import itertools
import json
import threading

import numpy as np
import pytest
import tiny
from prepared import prepared

from growlm.__main__ import main
from growlm.data import batches, load_corpus, validation_batches
from growlm.errors import InputError
from growlm.report.report import overview, write_report
from growlm.training.config import build_run, load_config, plain
from growlm.training.loop import training_batches
from growlm.training.mesh import mesh_of
from growlm.training.run import plan_run, train
from growlm.training.saved import find_saved
from growlm.training.sweep import describe, plan_sweep
from growlm.training.texts import repeats
from growlm.training.variants import build_sweep

STEP = tiny.STEP
GO_ON = threading.Event()  # never set
WINDOW = tiny.LENGTH + 1
# Texts of 1500 and 400 windows or so, in letters of their own.
LETTERS = {"lower": ("abcdefgh", 30_000), "upper": ("ABCDEFGH", 8_000), "digits": ("23456789", 8_000)}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    for name, (letters, size) in LETTERS.items():
        (folder / f"{name}.txt").write_text("".join(draw.choice(list(letters), size)))
    return {name: str(folder / f"{name}.txt") for name in LETTERS}


def mix(texts, **weights):
    return {name: {"corpus": texts[name], "weight": weight} for name, weight in weights.items()}


def run(texts, *stages, corpus=None, **options):
    return tiny.run_config(corpus, *stages, **options)


def name_of(row):
    """Whose text a window is."""
    letter = next(chr(token) for token in row if token)
    return next(name for name, (letters, _) in LETTERS.items() if letter in letters)


def examples(plan, number, start=None, count=None):
    """The examples of a stage from one on, as its own loop takes them."""
    stage = plan.stages[number]
    start = stage.examples_at(stage.first_step) if start is None else start
    end = stage.examples_at(stage.last_step)
    mesh = mesh_of(plan.config.mesh, plan.config.batch_sizes)
    stream = training_batches(stage, plan.texts[number], mesh, start)
    rows = np.concatenate([np.asarray(next(stream)) for _ in range((end - start) // stage.config.batch)])
    return rows[:count]


def alone(path, count, seed=0):
    stream = batches(load_corpus(path).train, seed=seed, batch=1, length=tiny.LENGTH, start=0)
    return np.concatenate(list(itertools.islice(stream, count)))


def test_each_source_goes_on_where_it_was_through_all_mixtures_and_batch_sizes(texts):
    stages = (
        tiny.stage(10, corpus=mix(texts, lower=3, upper=1)),
        tiny.grown(9, batch=2, corpus=texts["upper"], tokens=9 * 2 * tiny.LENGTH),
        tiny.grown(8, corpus=mix(texts, upper=1, lower=1)),
        tiny.grown(
            7, batch=8, corpus={"lower": {"corpus": texts["lower"]}, **mix(texts, upper=1)}, tokens=7 * 2 * STEP
        ),
        tiny.grown(6, corpus=mix(texts, lower=1, digits=3)),
    )
    plan = plan_run(run(texts, *stages, seed=5))
    rows = [examples(plan, number) for number in range(5)]
    assert [len(each) for each in rows] == [40, 18, 32, 56, 24]
    counted = [{name: sum(name_of(row) == name for row in each) for name in LETTERS} for each in rows]
    shares = [(30, 10, 0), (0, 18, 0), (16, 16, 0), (28, 28, 0), (6, 0, 18)]
    assert [tuple(each.values()) for each in counted] == shares
    for name in LETTERS:
        own = np.array([row for each in rows for row in each if name_of(row) == name])
        assert np.array_equal(own, alone(texts[name], len(own), seed=5))
    # The third and the fourth are one mixture, which runs on through the growth between them.
    assert (plan.stages[2].text_start, plan.stages[3].text_start, plan.stages[4].text_start) == (58, 58, 146)
    assert np.array_equal(examples(plan, 3, start=90 + 16), rows[3][16:])


def test_a_lone_corpus_is_fed_as_ever_whatever_stage_names_it(texts):
    stages = tiny.stage(5), tiny.grown(6, batch=2, tokens=6 * 2 * tiny.LENGTH)
    named = [stage | {"corpus": texts["lower"]} for stage in stages]
    plain_one, own = plan_run(run(texts, *stages, corpus=texts["lower"])), plan_run(run(texts, *named))
    whole = alone(texts["lower"], 32)
    for plan in (plain_one, own):
        assert np.array_equal(np.concatenate([examples(plan, number) for number in (0, 1)]), whole)


# --- hashes


def hashes(texts, *corpora, **options):
    stages = (tiny.stage(2), tiny.grown(2))
    own = [
        stage if corpus is None else stage | {"corpus": corpus} for stage, corpus in zip(stages, corpora, strict=True)
    ]
    return [stage.stage_hash for stage in plan_run(run(texts, *own, **options)).stages]


def test_a_stage_is_what_its_text_is_however_that_is_written(texts):
    lower = texts["lower"]
    known = hashes(texts, None, None, corpus=lower)
    assert hashes(texts, lower, {"x": {"corpus": lower, "weight": 7}}) == known
    assert hashes(texts, lower, None, corpus={lower: 0.2}) == known
    (stage, _) = plan_run(run(texts, tiny.stage(2), tiny.grown(2), corpus=lower)).stages
    assert stage.settings["corpus"] == load_corpus(lower).fingerprint  # as before there were mixtures
    mixed = hashes(texts, lower, mix(texts, lower=0.9, upper=0.1))
    assert mixed[0] == known[0] and mixed[1] != known[1]
    assert hashes(texts, lower, {texts["upper"]: 1, lower: 9}) == mixed
    assert len({hashes(texts, lower, mix(texts, lower=9, upper=part))[1] for part in (1, 2, 3)}) == 3


def test_what_decides_is_part_of_a_stage_that_is_validated_on_another_text(texts):
    rule = {"grow_when": {"rule": "loss", "options": {"below": 1.0}}}

    def judged(**evaluation):
        config = run(texts, tiny.stage(2, **rule), tiny.grown(2), corpus=texts["lower"], evaluation=EVERY | evaluation)
        stage = plan_run(config).stages[0]
        return stage.stage_hash, stage.judged_on.get("corpus")

    assert judged() == judged(corpus={texts["lower"]: 3}) and judged()[1] is None
    other = judged(corpus=texts["upper"])
    assert other[0] != judged()[0] and other[1] == load_corpus(texts["upper"]).fingerprint


EVERY = {"every_tokens": 2 * STEP, "batches": 2}


# --- runs


def two_stages(texts, **options):
    """One that repeats its small source, and one that goes over to digits, with upper replayed."""
    first = tiny.stage(4, corpus=mix(texts, lower=1, upper=3))
    second = tiny.grown(4, corpus=mix(texts, digits=3, upper=1))
    evaluation = EVERY | {"corpus": mix(texts, upper=1, digits=3)}
    return run(texts, first, second, **({"evaluation": evaluation, "seed": 1} | options))


@pytest.fixture(scope="module")
def trained(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(two_stages(texts), folder, GO_ON)
    return folder


def test_losses_are_by_source_and_the_loss_is_their_mean_by_weight(texts, trained):
    recorded = [record for record in tiny.records(trained) if "val_loss" in record]
    assert [(record["stage"], record["step"]) for record in recorded] == [
        (0, 0),
        (0, 2),
        (0, 4),
        (1, 4),
        (1, 6),
        (1, 8),
    ]
    for record in recorded:
        upper, digits = record["val_loss/upper"], record["val_loss/digits"]
        assert record["val_loss"] == pytest.approx(upper / 4 + 3 * digits / 4, rel=1e-9)
        assert "val_loss/lower" not in record and upper != digits
    # Only upper was trained on, then digits above all.
    upper, digits = ([record[f"val_loss/{name}"] for record in recorded] for name in ("upper", "digits"))
    assert upper[2] < digits[2] and digits[-1] < digits[3] - 0.1
    model, _, state = tiny.load_saved(trained)
    held_out = validation_batches(
        load_corpus(texts["digits"]).validation, count=2, batch=tiny.BATCH, length=tiny.LENGTH
    )
    from growlm.models import next_token_loss

    expected = np.mean([float(next_token_loss(model, state.params, rows)) for rows in held_out])
    assert digits[-1] == pytest.approx(expected, rel=1e-5)


def test_records_say_epochs_by_source_and_unique_tokens(texts, trained):
    windows = {name: len(load_corpus(texts[name]).train) // WINDOW for name in LETTERS}
    last = {(record["stage"], record["step"]): record for record in tiny.records(trained)}
    middle, end = last[0, 4], last[1, 8]
    epochs = {"lower": 4 / windows["lower"], "upper": 12 / windows["upper"]}
    assert {name: middle[f"epochs/{name}"] for name in epochs} == pytest.approx(epochs)
    epochs |= {"upper": 16 / windows["upper"], "digits": 12 / windows["digits"]}
    assert {name: end[f"epochs/{name}"] for name in epochs} == pytest.approx(epochs)
    assert (end["epochs"], end["unique_tokens"]) == (max(epochs.values()), end["tokens"])


@pytest.mark.slow
def test_a_run_stopped_at_every_step_of_its_mixtures_ends_with_the_same_bits(texts, trained, tmp_path):
    assert tiny.train_in_parts(two_stages(texts), tmp_path / "run") == 8
    assert tiny.timeless(tmp_path / "run") == tiny.timeless(trained)
    have, want = (tiny.read_checkpoint(tiny.checkpoints(folder)[4, 8]) for folder in (tmp_path / "run", trained))
    tiny.assert_same_arrays(have, want)


def test_what_is_seen_more_than_once_is_planned_and_listed(tmp_path):
    for name, size in (("long", 12_000), ("short", 8_000)):
        (tmp_path / name).write_text("".join(np.random.default_rng(1).choice(list("xyz "), size)))
    long, short = (load_corpus(str(tmp_path / name)) for name in ("long", "short"))
    corpus = {"long": {"corpus": long.name, "weight": 1}, "short": {"corpus": short.name, "weight": 3}}
    config = tiny.run_config(corpus, tiny.stage(150), tiny.grown(150))
    last = plan_run(config).stages[-1]
    times = {one.name: 1200 * part / 4 / (len(one.train) // WINDOW) for one, part in ((long, 1), (short, 3))}
    assert times[long.name] < 1 < times[short.name]
    assert [*repeats(last)] == [f"source short is seen {times[short.name]:.1f} times"]
    seen = {one.name: one for one in last.seen_at(last.last_step).values()}
    unique = len(short.train) // WINDOW * tiny.LENGTH + 300 * tiny.LENGTH
    assert seen["short"].tokens / seen["short"].epochs + seen["long"].tokens == pytest.approx(unique)
    short_one = tiny.run_config(corpus, tiny.stage(1), evaluation={"batches": 1})
    assert not [*repeats(plan_run(short_one).stages[-1])]
    sweep = build_sweep({"runs": {"a": plain(config)}, "baseline": "a"})
    assert f"  {next(repeats(last))}\n" in describe(plan_sweep(sweep), ["a"])


def test_a_run_says_what_it_sees_more_than_once(tmp_path, capsys):
    (tmp_path / "text").write_text("ab c" * 1100)  # two chunks, of which one is held out
    stage, path = tiny.stage(0, batch=64, tokens=8 * 64 * tiny.LENGTH), str(tmp_path / "text")
    train(tiny.run_config(path, stage, evaluation={"batches": 1, "batch": 2}), tmp_path / "run", GO_ON)
    windows = len(load_corpus(path).train) // WINDOW
    said = capsys.readouterr().err
    assert windows == 241 and said.count(f"1/1: source {path} is seen 2.1 times\n") == 1
    assert said.index("is seen") < said.index("step 0 of")
    first, *_, last = tiny.records(tmp_path / "run")
    assert (first["epochs"], first["unique_tokens"]) == (0, 0)
    assert last["epochs"] == pytest.approx(512 / 241) and last["unique_tokens"] == 241 * tiny.LENGTH
    assert not any(name.startswith("epochs/") for name in last)


def test_validation_is_of_the_runs_text_or_else_of_the_stages(texts):
    def validated(of_run, *own, **evaluation):
        stages = [stage | {"corpus": one} for stage, one in zip((tiny.stage(2), tiny.grown(2)), own, strict=True)]
        plan = plan_run(run(texts, *stages, corpus=of_run, evaluation=evaluation))
        return [[corpus.name for corpus in text.validated.corpora.values()] for text in plan.texts]

    lower, upper, digits = texts.values()
    assert validated(lower, upper, None) == [[lower], [lower]]
    assert validated(None, upper, digits) == [[upper], [digits]]
    assert validated(None, upper, digits, corpus=lower) == [[lower], [lower]]
    assert build_run(tiny.run(None, tiny.stage(2))).corpus == "stdlib"


def test_a_config_of_mixtures_goes_through_file_command_line_and_config_json(texts, tmp_path):
    config = two_stages(texts)
    assert build_run(json.loads(json.dumps(plain(config)))) == config
    file = tiny.write_config(tmp_path / "run.py", tiny.run(texts["lower"], tiny.stage(2)))
    stated = build_run(load_config(file, [f"corpus={{'{texts['lower']}': 0.9, '{texts['upper']}': 0.1}}"]))
    assert stated.corpus == {texts["lower"]: 0.9, texts["upper"]: 0.1}
    assert len(plan_run(stated).texts[0].trained.corpora) == 2


# --- what is not trained


@pytest.mark.parametrize(
    ("says", "make"),
    [
        (r"corpus\.upper\.weight must be a positive number, got -1", lambda t: {"corpus": mix(t, upper=-1)}),
        (r"config\.stages\[0\]: stage\.corpus\.upper\.weight must be", lambda t: {"own": mix(t, upper=0, lower=1)}),
        (r"evaluation\.corpus\.x must be a positive number", lambda t: {"evaluation": {"corpus": {"x": 0}}}),
        (
            r"stages\[0\]\.corpus must give an example of 'upper' at least, got 0\.08 of 8 examples",
            lambda t: {"corpus": mix(t, upper=1, lower=99)},
        ),
        (
            r"source 'lower' must be one text in all stages and in evaluation, got two",
            lambda t: (
                {"corpus": t["lower"], "own": {t["lower"]: 1, "lower": {"corpus": t["upper"]}}}
                | {"evaluation": {"corpus": {"lower": {"corpus": t["lower"]}}}}
            ),
        ),
        (
            r"'stdlib', a prepared folder, a text file .*got 'nowhere'",
            lambda t: {"corpus": {t["lower"]: 1, "nowhere": 1}},
        ),
        (r"evaluation\.corpus must be sources that differ", lambda t: {"evaluation": {"corpus": twice(t)}}),
    ],
)
def test_a_text_that_does_not_do_is_one_line(texts, says, make):
    given = {"corpus": None} | make(texts)
    stage = tiny.stage(2) | ({"corpus": given.pop("own")} if "own" in given else {})
    with pytest.raises(InputError, match=says) as error:
        plan_run(run(texts, stage, **given))
    assert "\n" not in str(error.value)


def twice(texts):
    return {name: {"corpus": texts["upper"]} for name in "ab"}


def test_each_source_must_have_a_window_and_a_batch_of_validation(texts, tmp_path):
    (tmp_path / "few.txt").write_text("short " * 1400)
    few = load_corpus(str(tmp_path / "few.txt"))
    both = {texts["lower"]: 1, few.name: 1}
    with pytest.raises(InputError, match=r"stages\[0\] needs 1 x \(length \+ 1\) = 9000 train tokens: .*few"):
        plan_run(tiny.run_config(both, tiny.stage(2, length=8_999, batch=1, tokens=17_998), evaluation={"length": 8}))
    with pytest.raises(InputError, match=r"stages\[0\] needs 400 x \(length \+ 1\) = 6800 validation tokens: .*few"):
        evaluation = {"batch": 400, "corpus": {few.name: 1}}
        plan_run(tiny.run_config(texts["lower"], tiny.stage(2), evaluation=evaluation))


def test_all_sources_of_a_run_have_one_tokenizer(texts, tmp_path):
    bpe = str(prepared(texts["lower"], tmp_path / "bpe", tokenizer=None, train_tokenizer="bpe", vocab=260))
    model = tiny.MODEL | {"vocab": 512}
    for corpus, own in ((bpe, texts["lower"]), (None, {bpe: 1, texts["lower"]: 1})):
        with pytest.raises(InputError, match="sources must have one tokenizer, got that of "):
            plan_run(run(texts, tiny.stage(2, model=model, corpus=own), corpus=corpus))


# --- sweeps, and the commands that read a run


def test_runs_of_a_sweep_share_a_stage_until_their_texts_part(texts):
    base = tiny.stage(2, corpus=texts["lower"])
    stages = {
        name: [base, tiny.grown(2, corpus=corpus)]
        for name, corpus in (
            ("same", texts["lower"]),
            ("mixed", mix(texts, lower=1, upper=1)),
            ("other", texts["upper"]),
        )
    }
    config = tiny.sweep(None, stages, "same", evaluation={"batches": 1, "corpus": texts["lower"]})
    plan = plan_sweep(build_sweep(config))
    assert len({run.stages[0].stage_hash for run in plan.runs.values()}) == 1
    assert len({run.stages[1].stage_hash for run in plan.runs.values()}) == 3
    assert plan.runs["same"].texts[0].trained.first is plan.runs["other"].texts[0].trained.first  # read once
    runs = {
        name: {"stages": stages[name], "corpus": texts[text]} for name, text in (("same", "lower"), ("other", "upper"))
    }
    config = {"runs": runs, "baseline": "same", "evaluation": {"batches": 1}}
    with pytest.raises(InputError, match="runs same and other must be validated on one text, for they share stage"):
        plan_sweep(build_sweep(config))


@pytest.mark.slow
def test_a_trained_run_is_found_reported_measured_and_grown(texts, trained, tmp_path, capsys):
    first, last = find_saved(trained, 4), find_saved(trained)
    assert (first.stage.number, last.stage.number) == (0, 1)
    assert last.data.corpus == mix(texts, digits=3, upper=1)
    assert last.data.fingerprint == {
        load_corpus(texts[name]).fingerprint: part for name, part in (("digits", 3), ("upper", 1))
    }
    text = overview(trained)
    records = tiny.records(trained)
    assert "loss on digits" in text and f"{records[-1]['val_loss/digits']:.4f}" in text and "epochs of lower" in text
    html = write_report(trained).read_text()
    assert "Loss by source" in html and (trained / "val_loss_digits.csv").exists()
    (tmp_path / "text.txt").write_text("ABCABC 234")
    assert main(["evaluate", f"--checkpoint={trained}", f"--perplexity={tmp_path / 'text.txt'}"]) == 0
    assert (
        main(["grow", f"--source={trained}", f"--output={tmp_path / 'grown'}", "--factor=2", "--operator=direct"]) == 0
    )
    assert "validation tokens" in capsys.readouterr().err
    again = find_saved(tmp_path / "grown").data
    assert again == last.data
