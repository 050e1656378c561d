"""What a report reads of records, by kind of file: other keys are whatever they are."""

from typing import Any, get_args

from growlm.errors import InputError

NUMBER = int | float
EACH = "*"  # every key of an object
VALIDATION = {"batches": NUMBER, "batch": NUMBER, "length": NUMBER}
MODEL = {"model": dict, "evaluation": VALIDATION, "schedule": {"kind": str}, "growth": {"options": dict}}
MODEL |= {"batch": NUMBER, "length": NUMBER}
CONFIG = {"stages": [MODEL], "evaluation": VALIDATION, "system": str, "system_options": dict}
CONFIG |= {"runs": {EACH: dict(CONFIG)}}
PARAMETERS = ("parameters_before", "parameters_after", "block_parameters_before", "block_parameters_after")
GROWTH = {"options": dict, "preserves_function": bool, "tokens": NUMBER}
GROWTH |= dict.fromkeys(PARAMETERS, NUMBER)
CANDIDATE = {"val_loss!": [NUMBER | None]}
DECISION = {
    "end": {"step!": int, "tokens": NUMBER, "rule": str, "value": NUMBER, "limit": NUMBER},
    "growth": {"chosen!": str, "steps!": int, "candidates!": {EACH: CANDIDATE}},
}
EVALUATION = {"growlm": {"tokens": NUMBER}, "results": {EACH: {"alias": str}}}
INIT_FROM = {"folder!": str, "flops": NUMBER}
RECORD = {"samples": [{"prompt!": str, "text!": str}], "pause_seconds": NUMBER, "time": dict}
TRY = {"run!": str, "value!": str | NUMBER, "val_loss!": NUMBER | None, "status!": str}
TRIES = {"tries!": [TRY], "chosen!": str | NUMBER | None, "at_end!": bool | None}
STAGE = {"stage_hash": str, "address": str, "tokens": NUMBER, "flops": NUMBER}
ENTRY = {"status": str, "error": str, "stages": [STAGE]}
SWEEP = {
    "title": str,
    "baseline": str,
    "command": str,
    "hardware": str,
    "commit": str,
    "experiment": str,
    "controls": {EACH: str},
    "grown": [str],
    "flops_trained": NUMBER,
    "flops_saved_by_sharing": NUMBER,
    "runs": {EACH: ENTRY},
    "search": {"key!": str, "seed!": int, "flops!": NUMBER, "runs!": {EACH: TRIES}},
}
WORDS = {dict: "an object", list: "a list", str: "a text", int: "an integer", bool: "true or false", NUMBER: "a number"}


def check_shape(value: Any, shape: Any, place: object) -> None:
    """Raises InputError unless a JSON value has a shape.

    Args:
        value: the value.
        shape: a type; a list of the shape of every item; or an object of shapes by key, of which those that end in "!"
            must be there, and the others may be null; under EACH that of every key.
        place: what the value is called.
    """
    kind = type(shape) if isinstance(shape, dict | list) else shape
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in (kind, *get_args(kind))):
        raise InputError(f"{place} must be {WORDS.get(kind, 'a text or a number')}, got {str(value)[:60]!r}")
    if isinstance(shape, list):
        for number, item in enumerate(value):
            check_shape(item, shape[0], f"{place}[{number}]")
    elif isinstance(shape, dict):
        for key, inner in shape.items():
            for name in value if key == EACH else [key.removesuffix("!")]:
                if key.endswith("!") and name not in value:
                    raise InputError(f"{place} must have {name!r}, got {str(value)[:60]!r}")
                if value.get(name) is not None or key.endswith("!") or key == EACH:
                    check_shape(value.get(name), inner, f"{place}: {name}")
