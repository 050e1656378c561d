"""Scores with resolution beside a task's accuracies: bits of the right answer, Brier score, bits per byte. NumPy alone.

An accuracy moves only where the right answer overtakes another, and is chance for a small model. These move with every
log-likelihood that it is taken from.

Shape suffixes: C choices.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

STDERR = "_stderr"  # ends the name of a metric's standard error, as the harness has it


class Answer(NamedTuple):
    """What a model says of one document.

    Attributes:
      nats_C: the log-likelihood of every choice; of the one text in a task such as LAMBADA.
      bytes_C: bytes of the scored text of each, in UTF-8, with the space before it.
      right: numbers of the right choices, at least one.
      choices: the choices as the harness takes their lengths, without that space; none in a task such as LAMBADA.
      bare_C: their log-likelihoods without the question, where the task has `acc_mutual_info`.
    """

    nats_C: np.ndarray
    bytes_C: np.ndarray
    right: tuple[int, ...] = (0,)
    choices: tuple[str, ...] = ()
    bare_C: np.ndarray | None = None


# What the choice of each accuracy is the largest of: as `ConfigurableTask.process_results` of the harness has it.
NORMALISED: dict[str, Callable[[Answer], np.ndarray]] = {
    "acc": lambda answer: answer.nats_C,
    "acc_norm": lambda answer: answer.nats_C / _at_least_1([len(choice) for choice in answer.choices]),
    "acc_bytes": lambda answer: answer.nats_C / _at_least_1([len(choice.encode()) for choice in answer.choices]),
    "acc_mutual_info": lambda answer: answer.nats_C - answer.bare_C,
}
PER_BYTE = "answer_bits_per_byte"
DETAILS = {PER_BYTE, *(accuracy.replace("acc", "brier") for accuracy in NORMALISED)}  # too many for a narrow table


def with_resolution(row: Mapping[str, Any], answers: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """The harness's row of a task with these scores beside each accuracy, means over documents with standard errors.

    Beside `acc` stand `bits` and `brier`, beside `acc_norm` `bits_norm` and `brier_norm`, and so on for NORMALISED; and
    once `answer_bits_per_byte`. A standard error is the sample deviation over the root of the number of documents, and
    "N/A" for one.

    Args:
      row: values by "METRIC,FILTER".
      answers: of every document with a right answer, by filter.
    """
    found: dict[str, Any] = {}
    for key, value in row.items():
        found[key] = value
        accuracy, _, filtered = key.partition(",")
        if accuracy in NORMALISED and (documents := answers.get(filtered)):
            scores_of = NORMALISED[accuracy]
            found |= _mean(accuracy.replace("acc", "bits"), filtered, [bits(one, scores_of(one)) for one in documents])
            if all(one.choices for one in documents):
                values = [brier(one, scores_of(one)) for one in documents]
                found |= _mean(accuracy.replace("acc", "brier"), filtered, values)
    for filtered, documents in answers.items():
        found |= _mean(PER_BYTE, filtered, [bits_per_byte(one) for one in documents])
    return found


def bits(answer: Answer, scores_C: np.ndarray) -> float:
    """-log2 of the probability of a right choice: the softmax of the scores, which are those of NORMALISED.

    log2(C) where all choices are equally likely. Of a text without choices, -log2 of its likelihood.
    """
    nats_C = _log_softmax(scores_C) if answer.choices else scores_C
    return float(-np.logaddexp.reduce(nats_C[list(answer.right)]) / np.log(2))


def brier(answer: Answer, scores_C: np.ndarray) -> float:
    """Squared distance of the choices' probabilities, as in `bits`, to 1 for the right one and 0 for the others.

    From 0 to 2 (Brier, 1950); 1 - 1/C where all are equally likely. Several right choices count as one.
    """
    probability_C = np.exp(_log_softmax(scores_C))
    right = list(answer.right)
    return float((1 - probability_C[right].sum()) ** 2 + (np.delete(probability_C, right) ** 2).sum())


def bits_per_byte(answer: Answer) -> float:
    """-log2 of the likelihood of the right text over its bytes: of the likeliest a byte where several are right."""
    return float((-answer.nats_C / np.log(2) / _at_least_1(answer.bytes_C))[list(answer.right)].min())


def _log_softmax(scores_C: np.ndarray) -> np.ndarray:
    return scores_C - np.logaddexp.reduce(scores_C)


def _at_least_1(lengths: Any) -> np.ndarray:
    """An empty text has the log-likelihood 0, and no length to divide by."""
    return np.maximum(lengths, 1)


def _mean(metric: str, filtered: str, values: Sequence[float]) -> dict[str, Any]:
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else "N/A"
    return {f"{metric},{filtered}": float(np.mean(values)), f"{metric}{STDERR},{filtered}": error}
