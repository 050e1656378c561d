"""A run under a document mask: what it trains on, and what it is called."""

import threading

import numpy as np
import pytest
import tiny

from growlm.data import batches, load_corpus, validation_batches
from growlm.models import next_token_loss
from growlm.training.loop import step_specs
from growlm.training.run import plan_run, train
from growlm.training.step import init_state


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of short documents, so that a window holds several."""
    folder = tmp_path_factory.mktemp("documents")
    for number in range(400):
        (folder / f"{number}.txt").write_text(" ".join(tiny.WORDS[number % 7 : number % 7 + 2]))
    return str(folder)


def run(corpus, mask):
    return tiny.run_config(corpus, tiny.stage(2), tiny.grown(1), document_mask=mask)


@pytest.mark.slow
def test_a_run_trains_and_validates_within_documents(corpus, tmp_path):
    config, text = tiny.run_config(corpus, tiny.stage(1), document_mask=True), load_corpus(corpus)
    first = next(batches(text.train, seed=config.seed, batch=tiny.BATCH, length=tiny.LENGTH, start=0))
    assert (first[:, 1:-1] == text.eos).any()
    held_out = validation_batches(text.validation, batch=tiny.BATCH, length=tiny.LENGTH, count=2)
    stage = config.stages[0]
    params = init_state(stage.model, stage.optimizer, config.seed).params

    def mean_loss(batches_NBS, end):
        return np.mean([float(next_token_loss(stage.model, params, part, document_end=end)) for part in batches_NBS])

    train(config, tmp_path / "run", threading.Event())
    begin, record, *_ = tiny.records(tmp_path / "run")
    for found, tokens in ((record["loss"], [first]), (begin["val_loss"], held_out)):
        np.testing.assert_allclose(found, mean_loss(tokens, text.eos), rtol=1e-5)
        assert abs(found - mean_loss(tokens, None)) > 1e-4


def test_the_mask_makes_another_stage_and_its_absence_none(corpus):
    text = load_corpus(corpus)
    masked, plain = (plan_run(run(corpus, mask)).stages for mask in (True, False))
    assert [a.stage_hash != b.stage_hash for a, b in zip(masked, plain, strict=True)] == [True, True]
    assert "document_mask" not in plain[0].settings
    ends = [{p.document_end for p in step_specs(s, s.first_step).values()} for s in (*masked, *plain)]
    assert ends == [{text.eos}, {text.eos}, {None}, {None}]
