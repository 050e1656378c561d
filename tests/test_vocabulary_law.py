"""The laws of the vocabulary: the published table, and the minimum of the published loss found another way."""

import numpy as np
import pytest

from growlm.errors import InputError
from growlm.laws import optimal_vocabulary, vocabulary_caveats, vocabulary_flops


# arXiv 2407.13623, table 1: parameters without the vocabulary, width, FLOPs, thousands of tokens by approaches 1 to 3.
@pytest.mark.parametrize(
    ("params", "embed", "flops", "thousands"),
    [
        (3e9, 3200, 1.3e21, (39, 43, 37)),
        (7e9, 4096, 7.1e21, (62, 67, 60)),
        (13e9, 5120, 2.4e22, (83, 91, 81)),
        (30e9, 6048, 1.3e23, (142, 154, 142)),
        (70e9, 8192, 7.1e23, (212, 231, 218)),
    ],
)
def test_the_published_vocabularies(params, embed, flops, thousands):
    found = optimal_vocabulary(params, embed)
    assert [round(one / 1e3) for one in (found.isoflops, found.derivative, found.loss)] == list(thousands)
    assert (found.low, found.high) == (min(vars(found).values()), max(vars(found).values()))
    assert vocabulary_flops(params) == pytest.approx(flops, rel=0.02)


@pytest.mark.parametrize("share", [0.1, 1, 10])
def test_the_third_is_the_minimum_of_the_published_loss_at_its_flops(share):
    params, embed = 7e9, 4096
    flops = share * vocabulary_flops(params)
    matrix = np.geomspace(1e6, 1e11, 400_001)
    tokens = flops / (6 * (params + matrix))
    # its three falling terms, in millions of parameters and billions of tokens (A1 and E do not move the minimum)
    loss = 0.195842 / (matrix / 1e6) ** 0.670737 + 2.124112 / (tokens / 1e9) ** 0.446606
    assert optimal_vocabulary(params, embed, flops).loss == pytest.approx(matrix[np.argmin(loss)] / embed, rel=1e-3)


def test_less_text_asks_for_a_smaller_vocabulary_and_moves_the_third_alone():
    short, best = (optimal_vocabulary(302e6, 1024, share * vocabulary_flops(302e6)) for share in (0.2, 1))
    assert short.loss < 0.8 * best.loss and short.low == short.loss
    assert (short.isoflops, short.derivative) == (best.isoflops, best.derivative)
    assert best == optimal_vocabulary(302e6, 1024)


def test_outside_of_what_was_fitted_there_is_a_reason():
    assert vocabulary_caveats(3e8) == []
    assert "below the range" in vocabulary_caveats(1e6)[0] and "above the range" in vocabulary_caveats(7e9)[0]


@pytest.mark.parametrize("change", [{"params": 0.0}, {"embed": -1}, {"flops": float("nan")}])
def test_what_is_not_positive_is_refused(change):
    with pytest.raises(InputError, match=rf"{next(iter(change))} must be a positive number"):
        optimal_vocabulary(**({"params": 1e8, "embed": 512, "flops": 1e18} | change))
