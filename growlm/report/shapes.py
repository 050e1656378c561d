"""What a report reads of records, by kind of file: other keys are whatever they are."""

from growlm.checked import EACH, NUMBER

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
RECORD = {"samples": [{"prompt!": str, "text!": str}], "pause_seconds": NUMBER, "time": dict, "parameters": int}
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
