"""The page for contributors: its code runs, from top to bottom."""

import re
from pathlib import Path

import pytest
from trees import exact_products

from growlm.growth import LIFTS, OPERATORS
from growlm.models import ARCHITECTURES
from growlm.training.optimizer import OPTIMIZERS

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture
def tables():
    """What the page adds is there in this test alone."""
    held = [(table, dict(table)) for table in (OPERATORS, LIFTS, ARCHITECTURES, OPTIMIZERS)]
    yield
    for table, before in held:
        table.clear()
        table.update(before)


def test_the_code_of_the_page_runs(tables):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 7
    names = {"__name__": "contributing"}
    with exact_products():
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    assert {"mirror", "shrunk"} <= OPERATORS.keys() and "squared" in ARCHITECTURES and "biases" in LIFTS
