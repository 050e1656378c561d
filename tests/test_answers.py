"""Instruction tuning: loss and validation are of answers alone, and the model answers in the form it learned."""

import io
import json
import runpy
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from test_chat import records, write

from growlm import init
from growlm.__main__ import main
from growlm.commands.evaluate import open_checkpoint
from growlm.commands.sample import talking
from growlm.data import Request, load_corpus, prepare, validation_batches
from growlm.data.chat import ASSISTANT, MARKERS, render
from growlm.data.documents import Reading
from growlm.errors import InputError
from growlm.evaluation import Sampling, generate
from growlm.models import apply
from growlm.training.loop import mean_loss
from growlm.training.objectives import ObjectiveConfig, answers
from growlm.training.run import train
from growlm.training.step import run_keys

ANSWERS = {"objective": {"kind": "answers"}}


def prepared(folder, found, **options):
    source = write(folder.parent / f"{folder.name}.jsonl", found)
    prepare(Request((str(source),), folder, "bytes", reading=Reading(chat=True), workers=1, **options))
    return str(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("chat") / "sums", records(300), validation="40")


@pytest.fixture(scope="module")
def workdir(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(tiny.run_config(corpus, tiny.stage(60, **ANSWERS), tiny.grown(240, **ANSWERS)), folder, threading.Event())
    return folder


def loss_of_answers(model, params, tokens):
    """(summed cross-entropy, number) of the answers' tokens, from all logits."""
    logits = np.asarray(apply(model, params, tokens[:, :-1]), np.float64)
    logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))
    each = -np.take_along_axis(logits, tokens[:, 1:, None], axis=2)[..., 0]
    counted = np.asarray(answers(ObjectiveConfig("answers"), tokens))
    return each[counted].sum(), counted.sum()


def test_the_losses_are_means_over_the_tokens_of_answers(workdir, corpus):
    config = tiny.run_config(corpus, tiny.stage(60, **ANSWERS))
    held_out = validation_batches(load_corpus(corpus).validation, batch=tiny.BATCH, length=tiny.LENGTH, count=2)
    records = tiny.records(workdir)
    model = config.stages[0].model
    for step, params in ((0, init(model, run_keys(config.seed)[0])), (60, tiny.load_saved(workdir, 60)[2].params)):
        found = [loss_of_answers(model, params, batch) for batch in held_out]
        expected = sum(loss for loss, _ in found) / sum(count for _, count in found)
        measured = next(r["val_loss"] for r in records if (r["stage"], r["step"]) == (0, step) and "val_loss" in r)
        assert measured == pytest.approx(expected, rel=1e-5)
    losses = [record["val_loss"] for record in records if "val_loss" in record]
    assert losses[-1] < losses[0] - 1


def test_batches_without_an_answer_change_nothing():
    assert mean_loss([(0.0, 0.0), (1.5, 0.5)]) == pytest.approx(3.0)
    assert mean_loss([(3.0, 1.0), (5.0, 1.0)]) == 4.0
    with pytest.raises(InputError, match="must have a token that the objective counts"):
        mean_loss([(0.0, 0.0)])
    config, none = ObjectiveConfig("answers"), np.full((2, 9), 97, np.int32)
    assert not np.asarray(config.row.token_weights(config, none)).any()


def test_a_checkpoint_is_saved_where_the_first_validation_batch_has_no_answer(tmp_path):
    turns = [[("user", f"{number} " + "and again " * 6), ("assistant", "yes")] for number in range(80)]
    found = [{"messages": [{"role": role, "content": text} for role, text in one]} for one in turns]
    corpus = prepared(tmp_path / "long", found, validation="20")
    often = {"evaluation": {"batch": 1, "batches": 12}, "checkpoint": {"every_tokens": 1}}
    first = validation_batches(load_corpus(corpus).validation, batch=1, length=tiny.LENGTH, count=12)[0]
    assert not answers(ObjectiveConfig("answers"), first).any()
    train(tiny.run_config(corpus, tiny.stage(3, **ANSWERS), **often), tmp_path / "run", threading.Event())
    assert len(tiny.records(tmp_path / "run")) > 1


def test_what_was_tuned_is_talked_to(workdir, capsys, monkeypatch):
    """Prompts are wrapped, answers end at a marker, and a conversation is kept until an empty line."""
    model = talking(open_checkpoint(workdir, length=64)[0])
    sampling = Sampling(until=MARKERS, most=12)

    def answer(*said):
        return generate(model, [render([*zip(("user", "assistant") * 9, said, strict=False)]) + ASSISTANT], sampling)[0]

    options = ["sample", f"--checkpoint={workdir}", "--temperature=0", "--max_tokens=12", "--length=64"]
    assert main([*options, "--prompt=What is 1 + 1?", "--json"]) == 0
    first = answer("What is 1 + 1?")
    assert json.loads(capsys.readouterr().out)["text"] == first
    assert first.startswith("It is ") and not generate(model, ["What is 1 + 1?"], sampling)[0].startswith("It is ")
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 1 + 1?\nAnd 2?\n\nAnd 2?\n"))
    assert main(options) == 0
    expected = [first, answer("What is 1 + 1?", first, "And 2?"), answer("And 2?")]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in expected)
    assert main([*options, "--prompt=What is 1 + 1?", "--system=Lie."]) == 0
    said = render([("system", "Lie."), ("user", "What is 1 + 1?")]) + ASSISTANT
    assert capsys.readouterr().out == generate(model, [said], sampling)[0] + "\n"


def test_what_does_not_fit_is_one_line(corpus, tmp_path):
    def refused(corpus, **objective):
        with pytest.raises(InputError) as error:
            train(tiny.run_config(corpus, tiny.stage(2, objective={"kind": "answers"} | objective)), tmp_path / "run")
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
        return str(error.value)

    assert "needs conversations" in refused(tiny.write_corpus(tmp_path))
    assert "objective.markers must be those of" in refused(corpus, markers=(1, 2, 3, 4))
    for markers in ((1, 2, 3), (1, 2, 3, 3), (1, 2, 3, -4), (1, 2, 3, "end")):
        with pytest.raises(InputError, match=r"objective\.markers must be 4 different tokens"):
            ObjectiveConfig("answers", markers=markers)
    with pytest.raises(InputError, match=r"objective\.markers must be unset with kind 'next_token'"):
        ObjectiveConfig(markers=(1, 2, 3, 4))


def test_the_tokens_that_count_are_those_of_every_mesh(corpus):
    """Rows of a batch are split over devices; the weights are a function of each row alone."""
    tokens = np.stack([load_corpus(corpus).train[i * 17 : (i + 1) * 17] for i in range(8)]).astype(np.int32)
    config = ObjectiveConfig("answers")
    rows = [np.asarray(jax.jit(lambda row: answers(config, row))(row[None]))[0] for row in tokens]
    np.testing.assert_array_equal(np.asarray(answers(config, tokens)), rows)


@pytest.mark.slow
def test_the_experiment_makes_its_conversations_and_is_talked_to(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["instruct.py", str(tmp_path / "talks.jsonl")])
    file = Path(__file__).parents[1] / "experiments/instruct.py"
    runpy.run_path(str(file), run_name="__main__")
    lines = (tmp_path / "talks.jsonl").read_text().splitlines()
    parameters = {"prompt": "What are the parameters of textwrap.wrap?", "response": "(text, width=70, **kwargs)"}
    assert json.dumps(parameters) in lines and len(lines) > 500
    chat = [f"--source={tmp_path}/talks.jsonl", "--chat", "--tokenizer=bytes", "--workers=1"]
    assert main(["prepare", *chat, f"--output={tmp_path}/talks"]) == 0
    runs = [f"--workdir={tmp_path}/runs", f"--config.corpus={tmp_path}/talks"]
    assert main(["sweep", f"--config={file}:tiny", *runs]) == 0
    capsys.readouterr()
    options = [f"--checkpoint={tmp_path}/runs/fresh", f"--prompt={parameters['prompt']}", "--max_tokens=5"]
    assert main(["sample", *options]) == 0 and capsys.readouterr().out
