"""Whether growing beat the baseline, and whether it also beat every control, in a few plain sentences."""

from collections.abc import Sequence

from growlm.laws.intervals import Interval, SeedSpeedup
from growlm.report.compare import Row, gained


def verdict(rows: Sequence[Row]) -> str:
    """Whether growing beat the baseline, and whether it also beat every control; a few plain sentences."""
    grown = [row for row in rows if row.role == "grown"]
    baseline = next((row.run for row in rows if row.role == "baseline"), None)
    if not grown or baseline is None:
        return "Nothing to compare here: that takes a grown run and a baseline."
    open_runs = [row.run for row in rows if row.status != "done"]
    caution = f"Preliminary, since these are not done: {', '.join(open_runs)}. " if open_runs else ""
    measured = [row for row in grown if row.speedup is not None]
    if not measured:
        why = grown[0].note or "nothing is measured"
        return f"{caution}Whether growing beats {baseline} cannot be said yet: {why}."
    done = [row for row in measured if row.status == "done"] or measured  # the beginning of a run is no rival
    best = max(done, key=lambda row: row.speedup)
    who = best.run if len(done) == 1 else f"The best of {len(done)} grown runs, {best.run},"
    return f"{caution}{who} {_outcome(best, baseline)} {_against_controls(best)}"


def _outcome(row: Row, baseline: str) -> str:
    """What a grown run did against the baseline."""
    at, seeds = f"validation loss {row.compared_at:.3f}", len(row.gain.seeds)
    interval = row.gain.speedup
    over = f", {seeds} seeds" if seeds > 1 else ""
    gain = f"(speed-up {gained(row.gain)}{over})"
    doubt = f", which {seeds} seeds cannot tell from no difference: the interval includes 0" if 0 in interval else ""
    if row.speedup > 0:
        return f"reached {at} with {row.saved:.1%} less compute than {baseline} {gain}{doubt}."
    if row.speedup == 0:
        return f"needed as much compute as {baseline} to reach {at}."
    return f"did not pay off: it needed {-row.saved:.1%} more compute than {baseline} to reach {at} {gain}{doubt}."


def _against_controls(row: Row) -> str:
    """What a grown run did against the controls: beaten is one where the interval, if there is one, is above 0."""
    if not row.over:
        return "There is no control, so what made the difference may not be the growing."
    groups: dict[str, list[str]] = {"lost": [], "unclear": [], "beaten": [], "missing": []}
    for name, gain in row.over.items():
        groups[_standing(gain)].append(f"{name} ({gained(gain)})" if gain and gain.speedup else name)
    if len(groups["beaten"]) == len(row.over):
        return f"It beat every control: {', '.join(groups['beaten'])}."
    said = {
        "lost": "did not beat {}",
        "unclear": "was not clearly different from {}",
        "beaten": "beat {}",
        "missing": "could not be compared with {}",
    }
    parts = [form.format(", ".join(groups[kind])) for kind, form in said.items() if groups[kind]]
    return f"Of the controls, it {'; it '.join(parts)}."


def _standing(gain: SeedSpeedup | None) -> str:
    interval: Interval | None = gain.speedup if gain else None
    if interval is None:
        return "missing"
    if 0 in interval:
        return "unclear"
    return "beaten" if interval.value > 0 else "lost"
