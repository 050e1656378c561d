"""Bits, Brier scores and bits per byte, against examples worked out by hand."""

import math

import numpy as np
import pytest

from growlm.evaluation.resolution import NORMALISED, Answer, bits, bits_per_byte, brier, with_resolution
from growlm.evaluation.table import scores, table

# Probabilities 1/8, 1/8, 1/2, 1/4 of the choices, times a factor that the softmax takes away.
NATS = np.log([1 / 8, 1 / 8, 1 / 2, 1 / 4]) - 7
CHOICES = ("a", "b", "é", "word")
BYTES = np.array([2, 2, 3, 5])


def answer(*right, nats=NATS, **changes):
    return Answer(nats, BYTES, right, CHOICES)._replace(**changes)


def test_bits_and_brier_scores_are_of_the_softmax_over_the_choices():
    assert [bits(answer(c), NATS) for c in range(4)] == pytest.approx([3, 3, 1, 2])
    # (1 - 1/2)^2 + 2 (1/8)^2 + (1/4)^2, and (1 - 1/8)^2 + (1/8)^2 + (1/2)^2 + (1/4)^2
    assert brier(answer(2), NATS) == pytest.approx(16 / 64 + 2 / 64 + 4 / 64)
    assert brier(answer(0), NATS) == pytest.approx(49 / 64 + 1 / 64 + 16 / 64 + 4 / 64)
    even = np.full(4, -3.0)
    assert (bits(answer(1), even), brier(answer(1), even)) == pytest.approx((2, 3 / 4))


def test_several_right_choices_are_one():
    both = answer(0, 2)  # 5/8
    assert bits(both, NATS) == pytest.approx(math.log2(8 / 5))
    assert brier(both, NATS) == pytest.approx((3 / 8) ** 2 + (1 / 8) ** 2 + (1 / 4) ** 2)


def test_unlikely_answers_have_finite_bits():
    nats = np.array([-5000.0, 0.0, -1.0, -1.0])
    beyond = 5000 + math.log(1 + 2 / math.e)
    assert bits(answer(0), nats) == pytest.approx(beyond / math.log(2))
    assert brier(answer(0), nats) == pytest.approx(1 + (1 + 2 / math.e**2) / (1 + 2 / math.e) ** 2)


def test_scores_are_normalised_as_the_accuracy_beside_them_is():
    one = answer(3, nats=np.array([-1.0, -2.0, -6.0, -8.0]), bare_C=np.array([-1.0, -1.0, -2.0, -9.0]))
    expected = {
        "acc": [-1, -2, -6, -8],
        "acc_norm": [-1, -2, -6, -2],  # characters
        "acc_bytes": [-1, -2, -3, -2],  # é has two
        "acc_mutual_info": [0, -1, -4, 1],
    }
    assert {name: scores_of(one).tolist() for name, scores_of in NORMALISED.items()} == expected
    empty = Answer(np.zeros(2), np.zeros(2), (0,), ("", "a"))
    assert NORMALISED["acc_norm"](empty).tolist() == [0, 0] and bits_per_byte(empty) == 0


def test_bits_per_byte_are_of_the_text_that_is_scored():
    nats = np.log(2) * np.array([-4.0, -8.0, -6.0, -5.0])
    assert [bits_per_byte(answer(c, nats=nats)) for c in range(4)] == pytest.approx([2, 4, 2, 1])
    assert bits_per_byte(answer(1, 2, nats=nats)) == pytest.approx(2)


def test_a_row_has_them_beside_each_accuracy_with_standard_errors():
    row = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.5, "acc_norm,none": 1.0, "f1,none": 0.1, "sample_len": 2}
    found = with_resolution(row, {"none": [answer(2), answer(0)]})
    assert {key: found[key] for key in row} == row
    # bits 1 and 3: mean 2, deviation sqrt(2), over sqrt(2) documents.
    assert (found["bits,none"], found["bits_stderr,none"]) == pytest.approx((2, 1))
    assert (found["brier,none"], found["brier_stderr,none"]) == pytest.approx(((22 + 70) / 128, (70 - 22) / 128))
    # Nats to bits of the texts alone: (1, 3) + 7 / ln 2, over 3 and 2 bytes.
    each = (1 + 7 / math.log(2)) / 3, (3 + 7 / math.log(2)) / 2
    assert found["answer_bits_per_byte,none"] == pytest.approx(sum(each) / 2)
    assert found["answer_bits_per_byte_stderr,none"] == pytest.approx((each[1] - each[0]) / 2)
    assert {"bits_norm,none", "bits_norm_stderr,none", "brier_norm,none", "brier_norm_stderr,none"} < found.keys()
    assert not any(key.startswith(("bits_f1", "f1_")) for key in found)


def test_a_text_without_choices_has_bits_and_no_brier_score():
    texts = [Answer(np.log([1 / 4]), np.array([2])), Answer(np.log([1 / 64]), np.array([3]))]
    found = with_resolution({"perplexity,none": 16.0, "acc,none": 0.0}, {"none": texts})
    expected = {"bits,none": 4, "bits_stderr,none": 2, "answer_bits_per_byte,none": 1.5}
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert not any(key.startswith("brier") for key in found)


def test_one_document_has_no_standard_error_and_none_adds_nothing():
    row = {"acc,none": 1.0}
    assert with_resolution(row, {"none": [answer(2)]})["bits_stderr,none"] == "N/A"
    assert with_resolution(row, {}) == row


def test_the_table_has_accuracies_and_bits():
    found = with_resolution({"acc,none": 0.5, "acc_norm,none": 0.5}, {"none": [answer(2), answer(0)]})
    assert [name for name, *_ in scores(found)] == ["acc", "bits", "acc_norm", "bits_norm"]
    shown = table({"results": {"x": found | {"sample_len": 2}}})
    assert "bits       2.0000        ± 1.0000" in shown and "brier" not in shown
    # A file from before these scores, and a metric of the harness's own.
    old = {"acc,none": 0.25, "acc_stderr,none": 0.1, "brier_score,none": 0.75}
    assert list(scores(old)) == [("acc", "0.2500", "± 0.1000"), ("brier_score", "0.7500", "")]
