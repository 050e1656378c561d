"""Synthetic facts: what a loss says of them, and the table of a sweep."""

import json
import math
import runpy
from pathlib import Path

import pytest
import studies

from growlm.__main__ import main
from growlm.data.chat import messages_of, render
from growlm.report.records import read_groups
from growlm.training.sweep import plan_sweep
from growlm.training.variants import build_sweep

CAPACITY = Path(__file__).parents[1] / "experiments" / "capacity.py"


@pytest.fixture(scope="module")
def capacity():
    return runpy.run_path(str(CAPACITY))


def test_facts_differ_and_a_window_is_one(capacity):
    facts = [*capacity["facts"]()]
    assert len({fact["prompt"] for fact in facts}) == capacity["FACTS"] == len(facts)
    assert facts == [*capacity["facts"]()]
    text = render(messages_of(facts[0], "here"))
    assert len(text) + 1 == capacity["TOKENS"]  # a byte each, and the token that ends a document
    stage = capacity["get_config"]("small").runs.scratch.stages[0]
    assert stage.length + 1 == capacity["TOKENS"] and stage.objective.kind == "answers"  # a window is one longer


def test_the_studys_commands_make_its_corpora_and_all_runs_cost_the_same(capacity, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    queue = runpy.run_path(str(CAPACITY.parent / "study" / "sweeps.py"))["QUEUE"]
    (commands,) = (row.before for row in queue if row.name == "capacity")
    (tmp_path / "runs").mkdir()
    lines = "".join(json.dumps(fact) + "\n" for fact in capacity["facts"]())
    assert commands[0] == "experiments/capacity.py --facts=runs/facts.jsonl"
    (tmp_path / "runs" / "facts.jsonl").write_text(lines)
    for command in commands[1:]:
        assert main(command.split()[2:]) == 0
    sweep = plan_sweep(build_sweep(capacity["get_config"]("small")))
    costs = {name: run.stages[-1].cost_at(run.stages[-1].last_step).flops for name, run in sweep.runs.items()}
    assert costs == pytest.approx(dict.fromkeys(costs, costs["scratch"]), rel=0.002)


def test_a_loss_is_so_many_bits(capacity):
    known, everything = capacity["known"], capacity["FACTS"] * 32
    assert known(0.0) == everything
    guessed = 8 * math.log(16) / 9  # values by chance, their ends by heart
    assert known(guessed) == pytest.approx(0, abs=1e-6) and known(2 * guessed) == 0
    assert known(guessed / 2) == pytest.approx(everything / 2)


def test_the_table_has_bits_before_and_after_growth_and_a_parameter(capacity, tmp_path):
    studies.write_seeds(tmp_path, [{"grown": 0.5, "scratch": 1.0, "open": None}] * 2)
    for path in tmp_path.glob("*/grown/metrics.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        validated = [record for record in records if record["stage"] == 1 and "val_loss" in record]
        for record in records:
            record["val_loss"] = (1.0, 0.5)[record["stage"]] if "val_loss" in record else None
        validated[0]["val_loss"], validated[1]["val_loss"] = 2.0, 1.001  # not yet what was known before
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (group,) = read_groups(tmp_path)
    grown, scratch = capacity["lines"](group)
    seen = (validated[2]["tokens"] - validated[0]["tokens"]) / (capacity["FACTS"] * (capacity["TOKENS"] - 1))
    before, after, end = (f"{capacity['known'](loss):,.0f}" for loss in (1.0, 2.0, 0.5))
    cells = (before, after, f"{seen:.0f}", end, f"{capacity['known'](0.5) / 4000:.2f}")
    assert grown == ("grown", *(f"{cell}, {cell}" for cell in cells)) and float(seen) > 1
    assert scratch[:4] == ("scratch", "", "", "")
