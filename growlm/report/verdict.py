"""What a sweep shows in a few sentences: which controls growing does not beat, what it saved, what was not tried."""

from collections.abc import Sequence

from growlm.laws.intervals import Interval
from growlm.report import style
from growlm.report.compare import Row, contenders, gained
from growlm.report.shown import named

# The controls of a claim of speed-up by name, as growlm.training.recipe's `Scale.controls` has them.
CONTROLS = ("untrained", "average_size", "short")
TUNED = "scratch_tuned"


def verdict(rows: Sequence[Row]) -> str:
    """Which controls the best grown run does not beat, whether it beat the baseline, and which were not run: lines."""
    grown = [row for row in rows if row.role == "grown"]
    baseline = next((row.run for row in rows if row.role == "baseline"), None)
    if not grown or baseline is None:
        return "Nothing to compare here: that takes a grown run and a baseline."
    open_runs = [row.run for row in rows if row.status != "done"]
    caution = f"Preliminary, since these are not done: {named(open_runs)}." if open_runs else ""
    done = contenders(rows)
    if not done:
        why = grown[0].note or "nothing is measured"
        found = f"Whether growing beats {baseline} cannot be said yet: {why}."
    else:
        best = done[0]
        who = best.run if len(done) == 1 else f"the best of {len(done)} grown runs, {best.run},"
        found = f"{_against_controls(best, who)}\nIt {_outcome(best, baseline)}"
        found += f" It {best.uncounted}." if best.uncounted else ""
    return "\n".join(filter(None, (caution, found, _not_run(rows))))


def standing(gap: Interval | None) -> str:
    """Where a run stands by its loss less that of another, over seeds: "lost", "unclear", "beaten" or "missing".

    The other is beaten if all of the interval, if there is one, is below 0.
    """
    if gap is None:
        return "missing"
    if 0 in gap:
        return "unclear"
    return "beaten" if gap.value < 0 else "lost"


def _against_controls(row: Row, who: str) -> str:
    """The sentence about a grown run and the controls; those that it does not beat come first."""
    gaps = row.gaps | row.further
    if not gaps:
        return f"There is no control of {who.rstrip(',')}: what made a difference may not be the growing."
    groups: dict[str, list[str]] = {"lost": [], "unclear": [], "missing": [], "beaten": []}
    for name, gap in gaps.items():
        loss = f" (loss {style.interval(gap, style.nats)})" if gap else ""
        groups[standing(gap)].append(f"{name}{loss}")
    if len(groups["beaten"]) == len(gaps):
        return f"At equal FLOPs {who} beats every control that was run: {named(groups['beaten'])}."
    sentences = {
        "lost": "does not beat {}",
        "unclear": "is not clearly different from {}",
        "missing": "cannot be compared with {}",
        "beaten": "beats {}",
    }
    parts = [form.format(named(groups[kind])) for kind, form in sentences.items() if groups[kind]]
    return f"At equal FLOPs {who} {'; it '.join(parts)}."


def _outcome(row: Row, baseline: str) -> str:
    """What a grown run did against the baseline."""
    at, seeds = f"validation loss {row.compared_at:.3f}", len(row.gain.seeds)
    interval = row.gain.speedup
    over = f", {seeds} seeds" if seeds > 1 else ", 1 seed"
    gain = f"(speed-up {gained(row.gain)}{over})"
    doubt = f", which {seeds} seeds cannot tell from no difference: the interval includes 0" if 0 in interval else ""
    if row.speedup > 0:
        return f"reached {at} with {row.saved:.1%} less compute than {baseline} {gain}{doubt}."
    if row.speedup == 0:
        return f"needed as much compute as {baseline} to reach {at}."
    return f"did not pay off: it needed {-row.saved:.1%} more compute than {baseline} to reach {at} {gain}{doubt}."


def _not_run(rows: Sequence[Row]) -> str:
    """The sentence that names the controls which the sweep does not have."""
    compared = [row for row in rows if row.role in ("grown", "baseline")]
    names = {row.run.partition("@")[0] for row in rows}  # of a control that is varied too
    missing = [name for name in CONTROLS if name not in names]
    if TUNED not in names and not all(row.searched for row in compared):
        missing.append("searched rates")
    if not all(row.decayed for row in compared):
        missing.append("schedules decayed to zero on both sides")
    return f"Controls not run: {', '.join(missing)}." if missing else ""
