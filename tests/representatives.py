"""Cases of which `make test` runs a few, and `make test-slow` the rest."""

from collections.abc import Collection, Iterable

import pytest


def few(cases: Iterable, kept: Collection) -> list:
    """The cases in their order, as parameters, of which all but those `kept` are slow.

    A tuple is the values of several names.
    """
    cases = list(cases)
    assert all(case in cases for case in kept), (cases, kept)

    def slow(case):
        return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)

    return [case if case in kept else slow(case) for case in cases]
