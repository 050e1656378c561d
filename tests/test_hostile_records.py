"""Records that were built to hurt: whatever a file of a run or a sweep holds, a report is one, or a line."""

import copy
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import hostile
import pytest
import tiny
from hostile import MEMORY, record, refused, watched, write_run, write_sweep

from growlm.checked import KEY
from growlm.errors import InputError
from growlm.report.records import read
from growlm.report.report import compared, overview, report_page
from growlm.training.run import train
from growlm.training.saved import find_saved


def write_everything(folder: Path) -> dict[str, Any]:
    """A sweep with all that a report reads; its files by their paths, as JSON, of lines the second."""
    tries = [{"run": f"a@{value}", "value": value, "val_loss": 2.0, "status": "done"} for value in (1, 2)]
    search = {"key": "peak_lr", "seed": 0, "flops": 1.0, "runs": {"a": {"tries": tries, "chosen": 1, "at_end": True}}}
    stages = [{"stage_hash": "abc", "tokens": 5, "flops": 1e6, "reused": False}]
    runs = {name: {"status": "done", "error": None, "stages": stages} for name in ("a", "b", "a@1", "a@2")}
    stage = {"model": {"layers": 2}, "evaluation": {"batches": 1}, "batch": 2, "length": 3, "schedule": {"kind": "x"}}
    config = {"seed": 0, "stages": [stage, stage | {"growth": {"operator": "direct", "options": {"order": "stack"}}}]}
    more = {"samples": [{"prompt": "a", "text": "b"}], "time": {"train": 1.0}, "pause_seconds": 1.0, "epochs/x": 1.0}
    lines = [record(stage, step, loss=2.0, grad_norm=1.0, **more) for stage, step in ((0, 1), (0, 2), (1, 3), (1, 4))]
    end = {"step": 1, "tokens": 5, "rule": "r", "value": 1.0, "limit": 2.0}
    chosen = {"chosen": "x", "steps": 2, "candidates": {"x": {"val_loss": [1.0, None]}}}
    growth = {"operator": "direct", "options": {"order": "stack"}, "preserves_function": True, "tokens": 5}
    files = {
        "sweep.json": {"title": "t", "baseline": "a", "grown": ["b"], "runs": runs, "search": search},
        "b/config.json": config,
        "b/metrics.jsonl": lines,
        "b/growth-1.json": growth | {"parameters_before": 1, "parameters_after": 2, "reason": "r"},
        "b/decision-0.json": {"end": end, "growth": chosen},
        "b/evaluations/results_1.json": {"growlm": {"tokens": 5}, "results": {"t": {"alias": "t", "acc,none": 0.5}}},
        "b/init_from.json": {"folder": "/x/y", "flops": 1e6},
    }
    for name, value in (files | {"a/metrics.jsonl": lines, "a/config.json": config}).items():
        put(folder / name, value)
    return files


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in value) if is_lines else json.dumps(value))


def report_of(folder: Path) -> None:
    """All that a report says, without the pictures, which take a second each."""
    compared(folder)
    overview(folder)
    report_page(folder)


# What stands in the place of each value; DELETED for nothing.
DELETED = object()
OTHERS = [None, True, -1, 10**99, float("nan"), 1e308, "x", [], [1], {}, {"x": 1}, DELETED]


def altered(files: dict[str, Any], share: int):
    """(file, where in it, its content) with one value another, of every `share`-th case."""
    cases = ((name, path, other) for name in files for path in hostile.paths_of(files[name]) for other in OTHERS)
    for name, (*parents, last), other in itertools.islice(cases, 0, None, share):
        whole = copy.deepcopy(files[name])
        node = whole
        for key in parents:
            node = node[key]
        if other is DELETED:
            del node[last]
        else:
            node[last] = other
        yield name, [*parents, last], whole


@pytest.mark.parametrize("share", [29, pytest.param(5, marks=pytest.mark.slow)])
def test_a_report_of_any_records_is_one_or_a_line(tmp_path, share):
    files = write_everything(tmp_path)
    report_of(tmp_path)
    for name, where, whole in altered(files, share):
        put(tmp_path / name, whole)
        try:
            report_of(tmp_path)
        except InputError as error:
            assert len(str(error).splitlines()) == 1
        except Exception as error:
            error.add_note(f"{name}: {where}")
            raise
        put(tmp_path / name, files[name])


BROKEN = {
    "a decision": ({"decision_0": {"end": {"rule": "r"}}}, "decision-0.json: end must have 'step'"),
    "options": ({"growth_1": {"options": [1]}}, r"growth-1.json: options must be an object, got '\[1\]'"),
    "deep": ({"config": functools.reduce(lambda inner, _: {"a": inner}, range(600), 1)}, "more than 100 brackets"),
    "init_from": ({"init_from": {"folder": "x", "flops": "y"}}, "init_from.json: flops must be a number, got 'y'"),
    "samples": ({"records": [record(samples=[1])]}, r"samples\[0\] must be an object, got '1'"),
    "a step": ({"records": [record(step=10**99, flops=10**101)]}, "an integer of 102 digits|must be a record"),
    "costs": ({"records": [record(flops=float("nan"))]}, "must be a record with stage, step and numbers"),
    "names": ({"records": [record(**{f"k{n}": 1.0 for n in range(1001)})]}, "at most 1000 names, got 100"),
    "stages": ({"records": [record(n, n) for n in range(1001)]}, "at most 1000 stages, got 1001"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_records_is_said(tmp_path, name):
    files, said = BROKEN[name]
    run = write_run(tmp_path / "run", **files)
    with refused(run, said):
        report_of(run)


# Of a run that a criterion ended and that began from a checkpoint: a file, what is in it, and what is said of it.
OF_A_RUN = {
    "the text that judges": ("stage.json", {"judged_on": [1]}, r"judged_on must be an object, got '\[1\]'"),
    "an end": ("decision.json", {"end": {"tokens": 5}}, "decision.json: end must have 'step'"),
    "a step": ("decision.json", {"end": {"step": "4"}}, "step must be an integer, got '4'"),
    "a growth": ("decision.json", {"growth": {"chosen": 3}}, "chosen must be a text, got '3'"),
    "a cost": ("init_from.json", {"flops": "y"}, "init_from.json: flops must be a number, got 'y'"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that began from another one."""
    folder = tmp_path_factory.mktemp("begun")
    corpus = tiny.write_corpus(folder)
    train(tiny.run_config(corpus, tiny.stage(1)), folder / "first")
    train(tiny.run_config(corpus, tiny.stage(1, init_from=str(folder / "first"))), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("name", OF_A_RUN)
def test_what_is_wrong_with_the_files_of_a_run_is_said(begun, name):
    file, value, said = OF_A_RUN[name]
    stage = next(begun.glob("checkpoints/*/stage.json"))
    path = begun / file if file == "init_from.json" else stage.with_name(file)
    content = path.read_bytes() if path.exists() else None
    before = {} if content is None else {key: one for key, one in json.loads(content).items() if key != KEY}
    put(path, before | value)
    try:
        with pytest.raises(InputError, match=said):
            find_saved(begun)
    finally:
        path.unlink() if content is None else path.write_bytes(content)


def test_a_report_of_a_thousand_stages_ends(tmp_path):
    """Every stage was looked for in all records, for each of them, for each of its figures."""
    run = write_run(tmp_path / "run", [record(number, number, loss=2.0) for number in range(400)])
    with watched(run, MEMORY):
        assert "growth 399" in overview(run)


@pytest.mark.parametrize(
    "content", [b"run,stage,step\n\xff,0,1\n", b"run,stage,step\na,0," + b"1" * 200_000, b"run,stage,step\na,[],1\n"]
)
def test_an_old_archive_is_read_or_refused_in_a_line(tmp_path, content):
    sweep = write_sweep(tmp_path / "sweep")
    (sweep / "metrics.csv").write_bytes(content)
    with refused(sweep, "must be a record with"):
        read(sweep)
