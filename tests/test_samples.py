"""Texts that a model writes while it is trained: when, of which model, and where they are shown."""

import threading

import pytest
import tiny

from growlm.data import load_tokenizer
from growlm.errors import InputError
from growlm.evaluation import LanguageModel, Sampling, generate
from growlm.report.report import write_report
from growlm.training.benchmarks import TEMPERATURE
from growlm.training.run import train
from growlm.training.settings import EvaluationConfig

PROMPTS = ("alpha ", "b")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    corpus, evaluation = tiny.write_corpus(folder), {"batches": 1, "prompts": PROMPTS, "prompt_tokens": 5}
    evaluation["prompts_every_tokens"] = 2 * tiny.STEP
    config = tiny.run_config(corpus, tiny.stage(4), tiny.grown(2), evaluation=evaluation)
    train(config, folder / "work", threading.Event())
    return folder / "work"


def test_texts_come_at_growth_within_a_stage_and_at_its_end_and_are_what_the_checkpoint_writes(workdir):
    written = {(r["stage"], r["step"]): r["samples"] for r in tiny.records(workdir) if "samples" in r}
    assert list(written) == [(0, 2), (0, 4), (1, 4), (1, 6)]
    for step, samples in ((4, written[0, 4]), (6, written[1, 6])):
        model, _, state = tiny.load_saved(workdir, step)
        tokenizer = load_tokenizer("bytes")
        reader = LanguageModel(model, state.params, tokenizer, length=16, prefix=tokenizer.eos)
        texts = generate(reader, PROMPTS, Sampling(most=5, temperature=TEMPERATURE), rows=2)
        assert samples == [{"prompt": prompt, "text": text} for prompt, text in zip(PROMPTS, texts, strict=True)]


def test_the_report_shows_them_in_order(workdir):
    page = write_report(workdir).read_text()
    places = [page.index(f"stage {stage}, step {step}") for stage, step in ((1, 4), (2, 4), (2, 6))]
    assert places == sorted(places) and "alpha " in page


def test_prompts_are_texts_and_tokens_a_number():
    with pytest.raises(InputError, match=r"evaluation.prompt_tokens must be >= 1, got 0"):
        EvaluationConfig(prompts=("a",), prompt_tokens=0)
