"""The records of a stage: JSON lines that survive a kill, times, profiler traces, and where a run was made."""

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from growlm.checked import lines_of, parse_record, sealed
from growlm.errors import InputError
from growlm.files import named, read_json, write_whole
from growlm.training.goodput import PRECISION, gone_on, with_new

BETWEEN = {"command": "\n", "hardware": "; ", "commit": ", "}  # the values of several starts of a sweep


@dataclasses.dataclass(frozen=True)
class ProfilingConfig:
    """How training is measured.

    peak_flops: FLOP/s of one device, for the MFU; None: as `growlm.laws.compute` has it. profile_steps: steps to
    write a profiler trace of, into profile_folder.
    """

    peak_flops: float | None = None
    profile_steps: range = range(0)
    profile_folder: Path = Path("profile")


NO_PROFILING = ProfilingConfig()


class Profile:
    """A profiler trace of the steps asked for, for TensorBoard or Perfetto."""

    def __init__(self, config: ProfilingConfig):
        self._steps, self._folder, self._on = config.profile_steps, config.profile_folder, False

    def before(self, step: int, pending: Any) -> None:
        """Starts or stops the trace where it is due; the arrays `pending` belong to the steps before."""
        if (step in self._steps) != self._on:
            jax.block_until_ready(pending)
            jax.profiler.stop_trace() if self._on else self._start()
            self._on = not self._on

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # a trace holds a million events: calls of Python fill it before the steps do
        jax.profiler.start_trace(self._folder, profiler_options=options)

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on:
            jax.profiler.stop_trace()


def read_records(path: Path, damaged: list[str] | None = None) -> list[dict[str, Any]]:
    """The records in a file. The last line may be half a line, if its writer was killed: it is left out.

    damaged: gets what is wrong with lines that are no record as it was written, which are left out then.
    Raises InputError that names such a line otherwise.
    """
    records = []
    for number, line, partial in lines_of(path, "records"):
        if partial:
            break
        try:
            records.append(parse_record(line, f"{path}:{number}"))
        except InputError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
    return records


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Write all records, whole or not at all."""
    write_whole(path, "".join(json.dumps(sealed(record)) + "\n" for record in records).encode())


class MetricsLog:
    """Appends records to metrics.jsonl. Records after `known_step` are a killed process's, and are dropped first.

    time_before: the seconds by cause of the stages before, see `growlm.training.goodput`.
    """

    def __init__(self, path: Path, known_step: int, time_before: Mapping[str, float]):
        self._path, self._known_step = path, known_step
        found = read_records(path)
        records = [record for record in found if record["step"] <= known_step]
        self.seconds = records[-1]["seconds"] if records else None
        self._time = gone_on(*((of[-1].get("time", {}) if of else time_before) for of in (found, records)))
        self._known = {record["step"]: record for record in records}
        write_records(path, records)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        """Write one line with the time, handed to the system at once.

        A step that was trained before is not written again, but what its record lacks of `measured` is: another run
        may leave the stage there only now.
        """
        if record["step"] <= self._known_step:
            self._complete(record, measured)
            return
        self._time = with_new(self._time)
        with named(self._path):
            self._file.write(json.dumps(sealed({**record, **measured, "time": self._time})) + "\n")
            self._file.flush()

    def _complete(self, record: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        """Bring on record what is measured of a step that was trained before; no later one is in the file yet."""
        step = record["step"]
        known = self._known.get(step, {})
        lacking = {name: value for name, value in measured.items() if name not in known}
        if not lacking:
            return
        self._known[step] = (known or {**record, **self._clock_at(step)}) | lacking
        self._file.close()
        write_records(self._path, [self._known[one] for one in sorted(self._known)])
        self._file = self._path.open("a", encoding="utf-8")

    def _clock_at(self, step: int) -> dict[str, Any]:
        """The times of a step between those of the records around it, so that they rise.

        This process has trained the step again, which is no part of how long the stage took until it.
        """
        steps = sorted(self._known)
        if not steps:
            return {}
        records = [self._known[one] for one in steps]
        times = [one.get("time", {}) for one in records]
        causes = sorted({cause for one in times for cause in one})

        def between(values: list[float]) -> float:
            return float(np.interp(step, steps, values))

        time = {cause: round(between([one.get(cause, 0.0) for one in times]), PRECISION) for cause in causes}
        return {"seconds": between([one["seconds"] for one in records]), "time": time}

    def sync(self) -> None:
        """Have what was written on the disk: no checkpoint is there without the records until it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # a full disk was reported by `write`
            self._file.close()


class Stopwatch:
    """Seconds that were counted, in as many pieces as there were."""

    def __init__(self, seconds: float = 0.0):
        self._before, self._began = seconds, None

    @property
    def seconds(self) -> float:
        """The seconds until now."""
        return self._before + (time.perf_counter() - self._began if self._began is not None else 0.0)

    def start(self) -> None:
        """Start to count, or go on."""
        self._began = time.perf_counter()

    def pause(self) -> None:
        """Stop counting."""
        self._before, self._began = self.seconds, None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count the time within."""
        self.start()
        try:
            yield
        finally:
            self.pause()


def reproduction(command: str, experiment: str | None = None) -> dict[str, str | None]:
    """What it takes to reproduce a run: the command, the hardware, the commit, and what its experiment file says."""
    return {"command": command, "hardware": hardware(), "commit": commit(), "experiment": experiment}


def of_all_starts(path: Path, metadata: Mapping[str, Any], trains: bool) -> dict[str, Any]:
    """What made the runs of the sweep.json at a path: the values of all starts that trained some, each once.

    metadata, trains: the `reproduction` of this start, and whether it trains some. What the experiment says is its.
    """
    if not path.exists():
        return dict(metadata)
    found, known = dict(metadata), read_json(path, path.name)
    for key, between in BETWEEN.items():
        before = known.get(key)
        values = [*(before.split(between) if isinstance(before, str) else ()), metadata[key] if trains else None]
        found[key] = between.join(dict.fromkeys(filter(None, values))) or None
    return found


def hardware() -> str:
    """The devices and the machine, in words."""
    devices = jax.devices()
    kind = devices[0].device_kind
    return f"{len(devices)} x {kind}, {os.cpu_count()} CPU cores ({platform.machine()}), jax {jax.__version__}"


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with a + where it was changed; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "-C", root, "describe", "--always", "--dirty=+", "--abbrev=10"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
