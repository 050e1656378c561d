"""The records of a stage: JSON lines that survive a kill, and the progress bar that shows them."""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from tqdm import tqdm

from growlm.files import write_whole
from growlm.training.processes import is_first


@dataclasses.dataclass(frozen=True)
class Instruments:
    """How training is watched: FLOP/s of one device, where the table does not know it; steps to profile, and where."""

    peak_flops: float | None = None
    profile_steps: range = range(0)
    profile_folder: Path = Path("profile")


UNWATCHED = Instruments()


class Profile:
    """A profiler trace of the steps asked for, for TensorBoard or Perfetto."""

    def __init__(self, instruments: Instruments):
        self._steps, self._folder, self._on = instruments.profile_steps, instruments.profile_folder, False

    def before(self, step: int, pending: Any) -> None:
        """Begins or ends where it is due; what is `pending` belongs to the steps before."""
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


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records in a file. The last line may be half a line, if its writer was killed: it is left out."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes all records, whole or not at all."""
    write_whole(path, "".join(json.dumps(record) + "\n" for record in records).encode())


class MetricsLog:
    """Appends records to metrics.jsonl. It begins after `known_step`: what is later there is from a killed process."""

    def __init__(self, path: Path, known_step: int):
        self._known = known_step
        records = [record for record in read_records(path) if record["step"] <= known_step]
        self.seconds = records[-1]["seconds"] if records else None
        write_records(path, records)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """One line, handed to the system at once; steps that are known already are not written twice."""
        if record["step"] > self._known:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Stopwatch:
    """Seconds spent on something."""

    def __init__(self, seconds: float = 0.0):
        self._before, self._began = seconds, None

    @property
    def seconds(self) -> float:
        """The seconds until now."""
        return self._before + (time.perf_counter() - self._began if self._began is not None else 0.0)

    def start(self) -> None:
        """Goes on counting."""
        self._began = time.perf_counter()

    def pause(self) -> None:
        """Stops counting."""
        self._before, self._began = self.seconds, None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Counts what is done within."""
        self.start()
        try:
            yield
        finally:
            self.pause()


class Progress:
    """A bar for one stage: which, step, tokens per second, loss and time left. On a terminal only now and then."""

    def __init__(self, title: str, first_step: int, step: int, last_step: int):
        interval = 0.2 if sys.stderr.isatty() else 20.0
        self._bar = tqdm(
            total=last_step - first_step,
            initial=step - first_step,
            desc=title,
            unit="step",
            mininterval=interval,
            maxinterval=interval,
            dynamic_ncols=True,
            disable=not is_first() or last_step == first_step,
            bar_format="{desc} {percentage:3.0f}% |{bar}| step {n_fmt}/{total_fmt}{postfix}, {remaining} left",
        )

    def step(self, loss: float, tokens_per_second: float) -> None:
        """One step further."""
        self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s", refresh=False)
        self._bar.update()

    def say(self, line: str) -> None:
        """A line above the bar."""
        if not self._bar.disable:
            self._bar.write(line, file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
