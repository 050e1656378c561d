"""What a report says of a search, beside the runs that it chose."""

from growlm.report import style
from growlm.report.records import Study


def search_text(study: Study) -> str:
    """A line for each run whose best try lies at the end of what was tried, and what the search took beside."""
    lines = []
    for name, of_run in study.search.get("runs", {}).items():
        values = [each["value"] for each in of_run["tries"]]
        if of_run["at_end"]:
            lines.append(
                f"searched {study.search['key']} of {name}: best {of_run['chosen']:g} lies at the end of "
                f"{min(values):g} to {max(values):g}"
            )
    if study.search:
        lines.append(f"the search took {style.flops(study.search['flops'])} FLOPs beside")
    return "\n".join(lines)
