"""Fits to one's own records as a plan takes them, in place of the published constants."""

from collections.abc import Sequence
from pathlib import Path

from growlm.errors import InputError
from growlm.laws.evidence import Evidence, Ladder, Measured, Points
from growlm.laws.intervals import Interval
from growlm.laws.isoflop import mean_minimum
from growlm.laws.planner import Own
from growlm.report.compare import Row, gain_over, rows
from growlm.report.fit import GrowthFit
from growlm.report.law_figures import growth_fits
from growlm.report.multiplier import named_families
from growlm.report.records import Group, read_groups, study_folders

_WHAT = {"timing": "when they grew", "factor": "by how much they grew"}


def own_fits(folder: Path) -> Own:
    """What the sweeps in a folder, or in the folders in it, determine.

    The law of timing and the factor are those of `growlm fit`, of the sweeps with most slices. A speed-up is that of
    the grown run with the lowest loss of each sweep, with its interval over seeds; of sweeps that have the same runs at
    four budgets or more, that of the families. Runs that began from a checkpoint do not count: its cost is not in them.

    Raises:
        InputError: no such folder, no run in it, a broken file.
    """
    found = [read_groups(one) for one in _record_folders(folder)]
    fits = growth_fits(group for groups in found for group in groups)
    said = {law: [one for one in fits if isinstance(one, GrowthFit) and one.law == law] for law in _WHAT}
    missing = {}
    for law, several in said.items():
        several.sort(key=lambda one: sum(each.best is not None for each in one.slices), reverse=True)
        missing[law] = several[0].missing if several else f"no runs in {folder} differ only in {_WHAT[law]}"
    timing = next((one.fit for one in said["timing"] if one.fit), None)
    minima = [each for one in said["factor"][:1] for each in one.slices if each.best]
    gains = [*_ladders(found, folder), *_points([group for groups in found for group in groups], folder)]
    known = {"timing": timing, "factor": minima, "saving": gains}
    missing["saving"] = f"no sweep in {folder} has grown runs that reach its baseline's loss at every seed"
    return Own(
        source=str(folder),
        timing=timing,
        factor=mean_minimum(minima) if minima else None,
        gains=tuple(gains),
        missing={name: missing[name] for name, value in known.items() if not value},
    )


def _record_folders(folder: Path) -> list[Path]:
    """The folder if it holds sweeps, or those in it that do, such as experiments/records."""
    try:
        study_folders(folder)
    except InputError:
        if not folder.is_dir():
            raise
        found = [one for one in sorted(folder.iterdir()) if one.is_dir() and _holds_sweeps(one)]
        if not found:
            raise
        return found
    return [folder]


def _holds_sweeps(folder: Path) -> bool:
    try:
        return bool(study_folders(folder))
    except InputError:
        return False


def _ladders(found: Sequence[Sequence[Group]], folder: Path) -> list[Measured]:
    """A ladder for every grown family that the sweeps of one folder have at enough budgets."""
    return [
        Ladder(f"your {grown.name}", str(folder), f"({baseline.name})", grown, baseline)
        for groups in found
        for baseline, families, _ in named_families(groups)
        for grown in families
    ]


def _points(groups: Sequence[Group], folder: Path) -> list[Measured]:
    """The speed-ups of the best grown run of every group, over scratch of its shape, as it was and as it was tuned."""
    points: dict[str, list[Evidence]] = {}
    for group in groups:
        found = {row.run: row for row in rows(group) if not row.uncounted}
        grown = [row for row in found.values() if row.role == "grown" and row.status == "done" and row.val_loss]
        if not grown:
            continue
        best = min(grown, key=lambda row: row.val_loss)
        several = f"{best.run} of {group.first.title!r}, the best of {len(grown)}" if len(grown) > 1 else best.run
        for name in (group.first.baseline, "scratch_tuned"):
            other = found.get(name)
            if other is None or other.role not in ("baseline", "control"):
                continue
            gain = best.gain if other.role == "baseline" else gain_over(group, best.run, name)
            if not gain or not gain.speedup:
                continue
            if best.parameters and other.parameters == best.parameters:
                note = f"{several}, {len(gain.seeds)} seed{'s' * (len(gain.seeds) > 1)}"
                points.setdefault(name, []).append(_evidence(best, gain.speedup, note))
    return [Points("your grown runs", str(folder), f"({name})", tuple(every)) for name, every in points.items()]


def _evidence(row: Row, gain: Interval, note: str) -> Evidence:
    low, high = (gain.value, gain.value) if gain.low is None else (gain.low, gain.high)
    return Evidence(row.parameters, row.flops / (6 * row.parameters), low, high, note)
