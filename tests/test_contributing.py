"""The page for contributors: its code runs, from top to bottom."""

import dataclasses
import re
from pathlib import Path

import pytest
from trees import exact_products

from growlm.growth import LIFTS, OPERATORS, PRESETS
from growlm.models import ARCHITECTURES, plain
from growlm.training.config import build_run
from growlm.training.optimizer import OPTIMIZERS
from growlm.training.systems import written_out

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture
def tables():
    """What the page adds is there in this test alone."""
    held = [(table, dict(table)) for table in (OPERATORS, PRESETS, LIFTS, ARCHITECTURES, OPTIMIZERS)]
    yield
    for table, before in held:
        table.clear()
        table.update(before)


def test_the_code_of_the_page_runs(tables):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 8
    names = {"__name__": "contributing"}
    with exact_products():
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    target = plain(dataclasses.replace(names["small"], layers=6))
    run = build_run({"system": "mirrored", "stages": [{"model": target, "tokens": 640, "batch": 2, "length": 8}]})
    assert [stage.model.layers for stage in written_out(run).stages] == [3, 6]
    assert {"mirror", "shrunk"} <= OPERATORS.keys() and "squared" in ARCHITECTURES and "biases" in LIFTS
