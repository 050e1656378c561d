"""Benchmarks while a stage is trained: when, of which model, under which names."""

import dataclasses
import json
import threading

import jax
import numpy as np
import pytest
import tiny

from growlm.__main__ import main
from growlm.commands.evaluate import run_evaluation
from growlm.data import load_tokenizer
from growlm.errors import InputError
from growlm.evaluation import LanguageModel
from growlm.evaluation.score import Window, score
from growlm.models import ModelConfig, init, next_token_loss
from growlm.training.benchmarks import in_words, named_scores
from growlm.training.run import plan_run, train
from growlm.training.settings import EvaluationConfig

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

NAMES = tuple(f"benchmark/lambada_openai/{name}" for name in ("perplexity", "acc", "bits", "answer_bits_per_byte"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Nine documents of LAMBADA's form, of the words that the corpus has."""
    folder = tmp_path_factory.mktemp("records")
    texts = [" ".join(tiny.WORDS[n:] + tiny.WORDS[: n + 1]) for n in range(9)]
    (folder / "lambada_openai.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(folder)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data_dir):
    """Two stages; the second under masks that are half open at its end."""
    folder = tmp_path_factory.mktemp("run")
    tasks = {"tasks": ("lambada_openai",), "data_dir": data_dir, "limit": 7}
    evaluation = {"batches": 2, "tasks_every_tokens": 2 * tiny.STEP, **tasks}
    options = {"mask_tokens": 8 * tiny.STEP, "whole_blocks": True}
    grown = tiny.grown(4, growth={"operator": "random", "options": options}, evaluation={"batches": 2, **tasks})
    config = tiny.run_config(tiny.write_corpus(folder), tiny.stage(5), grown, evaluation=evaluation)
    train(config, folder / "work", threading.Event())
    return folder / "work"


def test_scores_come_where_they_are_due_and_beside_the_validation_loss(workdir):
    """Every two steps and at the end of the first stage; at the end of the second alone, which says so for itself."""
    records = tiny.records(workdir)
    measured = [record for record in records if set(NAMES) & record.keys()]
    assert [(record["stage"], record["step"]) for record in measured] == [(0, 2), (0, 4), (0, 5), (1, 9)]
    assert all(set(NAMES) < record.keys() and "val_loss" in record for record in measured)
    perplexities = [record[NAMES[0]] for record in measured]
    assert len(set(perplexities)) == 4 and perplexities[0] > perplexities[2]


@pytest.mark.parametrize("step", [5, 9])
def test_they_are_what_evaluate_measures_of_the_checkpoint(workdir, data_dir, step):
    results, _ = run_evaluation(
        workdir, tasks=["lambada_openai"], data_dir=workdir.parent / data_dir, limit=7, step=step
    )
    (record,) = (r for r in tiny.records(workdir) if r["step"] == step and NAMES[0] in r)
    assert results["n-samples"]["lambada_openai"]["effective"] == 7
    for name, value in named_scores(results).items():
        assert record[name] == pytest.approx(value, rel=1e-5)


def test_a_score_is_named_by_task_metric_and_filter():
    row = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "exact_match,strict": 1, "sample_len": 9}
    row |= {"perplexity_stderr,none": "N/A"}
    found = named_scores({"results": {"x": row}, "average": {"acc": 0.25}})
    assert found == {"benchmark/x/acc": 0.5, "benchmark/x/exact_match,strict": 1.0, "benchmark/average/acc": 0.25}
    assert in_words({"benchmark/a/ppl": 12345.6, "benchmark/a/acc": 0.125, "benchmark/b/bits": 2.0}) == (
        "a acc 0.125, b bits 2"
    )


def test_what_is_measured_does_not_make_another_stage(tmp_path, data_dir):
    corpus = tiny.write_corpus(tmp_path)
    plain = plan_run(tiny.run_config(corpus, tiny.stage(2)))
    tasks = {"tasks": ("lambada_openai",), "data_dir": data_dir}
    other = plan_run(tiny.run_config(corpus, tiny.stage(2, evaluation=tasks)))
    assert plain.stages[0].stage_hash == other.stages[0].stage_hash
    assert other.stages[0].evaluation == EvaluationConfig(**tasks) != plain.stages[0].evaluation


def test_runs_that_share_a_stage_measure_the_same_on_it(tmp_path, data_dir, capsys):
    corpus, tasks = tiny.write_corpus(tmp_path), {"tasks": ("lambada_openai",), "data_dir": data_dir}
    experiment = tmp_path / "shared.py"
    runs = {"a": [tiny.stage(2)], "b": [tiny.stage(2, evaluation=tasks)]}
    experiment.write_text(f"def get_config():\n    return {tiny.sweep(corpus, runs, 'a')!r}\n")
    assert main(["sweep", f"--config={experiment}", f"--workdir={tmp_path / 'work'}"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "runs a and b must be one, for they share stage" in said and "lambada_openai" in said


def test_tasks_may_be_typed_as_one_text():
    run = tiny.run_config("c", tiny.stage(2, evaluation={"tasks": "arc_easy,piqa"}))
    assert run.stages[0].evaluation.tasks == ("arc_easy", "piqa")


@pytest.mark.parametrize(
    ("evaluation", "says"),
    [
        ({"tasks": ("lambada_opnai",)}, "got 'lambada_opnai'; did you mean 'lambada_openai"),
        ({"tasks": ("piqa",), "data_dir": "."}, "piqa.jsonl"),
        ({"tasks": ("piqa",), "data_dir": "gone"}, "data_dir must be a folder with a file TASK.jsonl"),
        ({"limit": 3}, "evaluation.limit must be unset without evaluation.tasks, got 3"),
        ({"tasks_every_tokens": 64}, "evaluation.tasks_every_tokens must be unset without evaluation.tasks, got 64"),
        (
            {"prompts_every_tokens": 9},
            "evaluation.prompts_every_tokens must be unset without evaluation.prompts, got 9",
        ),
        ({"tasks": ("piqa",), "limit": -1}, "evaluation.limit must be >= 0, got -1"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(tmp_path, monkeypatch, evaluation, says):
    monkeypatch.chdir(tmp_path)
    corpus = tiny.write_corpus(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        train(tiny.run_config(corpus, tiny.stage(2), evaluation=evaluation), tmp_path / "work", threading.Event())
    assert "\n" not in str(caught.value) and not (tmp_path / "work").exists()


def test_a_model_of_single_documents_is_scored_within_them():
    """What EOS ends is not seen any more; as training has it."""
    config = ModelConfig(**tiny.MODEL)
    model = LanguageModel(config, init(config, jax.random.key(0)), load_tokenizer("bytes"), 16, 0)
    masked = dataclasses.replace(model, document_end=0)
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 256, 17)
    tokens[[4, 9]] = 0
    requests = [[Window(tuple(tokens.tolist()), 16)]]
    for reader, end in ((model, None), (masked, 0)):
        expected = next_token_loss(config, model.params, tokens[None], document_end=end) * 16
        assert -score(reader, requests)[0].log_likelihood == pytest.approx(float(expected), rel=1e-5)
    assert abs(score(model, requests)[0].log_likelihood - score(masked, requests)[0].log_likelihood) > 1e-3
