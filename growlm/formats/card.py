"""Model cards: where weights come from, how they were grown, what was verified, and under which licence they are."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from growlm.errors import InputError, import_library
from growlm.files import write_whole
from growlm.hub import name_of

CARD = "README.md"
TERMS = ("license", "license_name", "license_link")  # of a card's metadata, which hold for what comes of a model


def write_card(folder: Path, title: str, says: Sequence[str], *, record: str | None, source: Path | None) -> None:
    """Write the card of a model into its folder; where the library is missing, stderr has a line instead.

    Args:
      folder: where.
      title: the card's heading.
      says: its paragraphs, in Markdown.
      record: what records say of the folder that the weights come from, as `growlm.hub.recorded` has it; None where
        they come from none.
      source: a folder with that folder's own card, if it has one.
    """
    try:
        hub = import_library("huggingface_hub")
    except InputError as error:
        print(f"growlm: no model card is written: {error}", file=sys.stderr, flush=True)
        return
    theirs = _metadata(hub, source / CARD) if source and (source / CARD).is_file() else {}
    data = hub.ModelCardData(
        base_model=name_of(record or "") or theirs.get("base_model"),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["growlm", "model-growth"],
        **{name: theirs[name] for name in TERMS if name in theirs},
    )
    terms = []
    if record:
        known = f": {theirs['license']}" if "license" in theirs else ""
        terms = [f"The licence and the terms of the source hold for this model too{known}."]
    body = "\n\n".join([f"# {title}", *says, *terms])
    card = hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")
    write_whole(folder / CARD, str(card).encode())


def _metadata(hub: Any, card: Path) -> dict[str, Any]:
    """What the card of the source says between its dashes; nothing where that is not what it should be."""
    try:
        return hub.metadata_load(card) or {}
    except Exception:  # YAML of another's making, and of a library whose errors have no common class
        return {}


def grown_or_shrunk(report: Mapping[str, Any]) -> str:
    """What a growth did, in a word."""
    return "grown" if report["parameters_after"] >= report["parameters_before"] else "shrunk"


def growth_lines(report: Mapping[str, Any], verified: str) -> str:
    """How a model was grown, as a list in Markdown.

    Args:
      report: of the growth, as `growlm.growth.describe` gives it, with operator and options, and asked: the name that
        these were asked for by, where it is another.
      verified: what was verified, in a sentence.
    """
    before, after = (f"{report[f'parameters_{when}']:,}" for when in ("before", "after"))
    made = grown_or_shrunk(report)
    options = shlex.join(f"{name}={value}" for name, value in report["options"].items()) or "none"
    operator, asked = report["operator"], report.get("asked", report["operator"])
    kept = "keeps" if report["preserves_function"] else "does not keep"
    return f"""- {made} from {before} to {after} parameters
- operator: {asked if asked == operator else f"{asked} ({operator})"}; options: {options}
- layers, by the source's layer that each is a copy of (-1: fresh): {" ".join(map(str, report["order"]))}
- layers that add nothing yet: {" ".join(map(str, report["zero_residual_layers"])) or "none"}
- function: what was done {kept} the source's: {report["reason"]}
- verified: {verified}"""
