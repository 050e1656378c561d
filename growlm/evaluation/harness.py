"""growlm models as models of EleutherAI's lm-evaluation-harness. Imported only where the extra `eval` is there.

Encoding follows the harness's own backend for Hugging Face models (`lm_eval.models.huggingface.HFLM`), so that the
same weights give the same numbers.
"""

import collections
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import normalize_gen_kwargs

from growlm.errors import must_be, unknown
from growlm.evaluation.resolution import Answer
from growlm.evaluation.sampling import Sampling, generate
from growlm.evaluation.score import LanguageModel, score, windows

# Generation settings of tasks that are supported; `do_sample` follows from a temperature above 0.
KNOWN = ("until", "max_gen_toks", "temperature", "do_sample")


class Adapter(LM):
    """The three requests of the harness, answered by a model of ours.

    Args:
      model: the model.
      batch: rows of a batch; by default as many as make some thousand positions.
    """

    def __init__(self, model: LanguageModel, batch: int | None = None):
        super().__init__()
        self._model, self._batch = model, batch

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """The log-likelihood of every (context, continuation), and whether greedy decoding gives it."""
        pairs = encode_pairs(self._model, [request.args for request in requests])
        found = [windows(context, continuation, self._model.length) for context, continuation in pairs]
        return [tuple(each) for each in score(self._model, found, self._batch, "log-likelihoods")]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """The log-likelihood of every text, in disjoint windows."""
        texts = self._model.encode_all([request.args[0] for request in requests])
        found = [windows([self._model.prefix], tokens, self._model.length) for tokens in texts]
        return [each.log_likelihood for each in score(self._model, found, self._batch, "rolling windows")]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The generated text of every (context, settings); those with equal settings are batched together."""
        by_settings: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_settings.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts = [""] * len(requests)
        for settings, numbers in by_settings.items():
            contexts = [requests[number].args[0] for number in numbers]
            written = generate(self._model, contexts, _sampling(json.loads(settings)), self._batch)
            for number, text in zip(numbers, written, strict=True):
                texts[number] = text
        return texts


def _sampling(settings: dict) -> Sampling:
    """A task's generation settings. Raises InputError for those that are not supported."""
    asked = normalize_gen_kwargs(settings)
    drawn = asked["do_sample"]
    if others := [name for name in asked if name not in KNOWN and drawn]:
        raise unknown("generation setting of a task", others[0], KNOWN)
    until = tuple(asked["until"])
    return Sampling(until, asked["max_gen_toks"], float(asked.get("temperature", 1.0)) if drawn else 0.0)


def encode_pairs(model: LanguageModel, pairs: Iterable[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Tokens of contexts and continuations: both are encoded as one text, and cut where the context alone would end.

    Spaces at the end of a context belong to the continuation. Before an empty context stands the model's prefix.

    Raises:
      InputError: a continuation has no tokens of its own: the harness's backend fails there, and a likelihood of 1
        would win every multiple choice.
    """
    moved = [_spaces_moved(*pair) for pair in pairs]
    whole = _encoded(model, (context + continuation for context, continuation in moved if context))
    alone = _encoded(model, (context for context, _ in moved if context))
    bare = _encoded(model, (continuation for context, continuation in moved if not context), add_bos=False)
    found = []
    for context, continuation in moved:
        if context:
            before = alone[context]
            found.append((before or [model.prefix], whole[context + continuation][len(before) :]))
        else:
            tokens = bare[continuation]
            has_prefix = tokens[:1] == [model.prefix]
            found.append((tokens[:1], tokens[1:]) if has_prefix else ([model.prefix], tokens))
        if continuation and not found[-1][1]:
            rule = f"text with tokens of its own after {context[-40:]!r}, for tokenizer {model.tokenizer.name}"
            raise must_be("a continuation", rule, continuation)
    return found


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def _encoded(model: LanguageModel, texts: Iterable[str], add_bos: bool | None = None) -> dict[str, list[int]]:
    """Every text once: choices share their contexts."""
    unique = list(dict.fromkeys(texts))
    return dict(zip(unique, model.encode_all(unique, add_bos), strict=True))


def answers(task: Any) -> dict[str, list[Answer]]:
    """What the model said of the documents of a task that has been scored, by filter, from the requests that it keeps.

    None of a task that is not scored by log-likelihoods, or by a rule of its own; and none of a document whose right
    answer is not among the choices, such as one of a hidden test set.
    """
    own_rule = type(task).process_results is not ConfigurableTask.process_results
    if own_rule or callable(task.config.process_results) or task.OUTPUT_TYPE not in _BY_LIKELIHOOD:
        return {}
    by_document = collections.defaultdict(list)
    for request in task.instances:
        by_document[request.doc_id].append(request)
    found = collections.defaultdict(list)
    for requests in by_document.values():
        requests.sort(key=lambda request: request.idx)
        for filtered in requests[0].filtered_resps:
            answer = _answer(task, requests, filtered)
            if answer.right:
                found[filtered].append(answer)
    return dict(found)


_BY_LIKELIHOOD = ("multiple_choice", "loglikelihood")


def _answer(task: Any, requests: Sequence[Instance], filtered: str) -> Answer:
    """Of one document. Where the task has `acc_mutual_info`, the choices without the question come after all others."""
    nats = np.asarray([request.filtered_resps[filtered][0] for request in requests], np.float64)
    lengths = np.asarray([len(request.args[1].encode()) for request in requests])
    if task.OUTPUT_TYPE == "loglikelihood":
        return Answer(nats, lengths)
    choices = tuple(task.doc_to_choice(requests[0].doc))
    count = len(choices)
    bare = nats[count:] if len(nats) == 2 * count else None
    return Answer(nats[:count], lengths[:count], _right(task, requests[0].doc, choices), choices, bare)


def _right(task: Any, doc: dict, choices: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the right choices, which the harness has as a number, a text, or a list."""
    named = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    each = named if isinstance(named, list) else [named]
    numbers = {choices.index(one) if one in choices else -1 if isinstance(one, str) else int(one) for one in each}
    return tuple(sorted(number for number in numbers if 0 <= number < len(choices)))
