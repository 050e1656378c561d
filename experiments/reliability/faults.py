"""Jump the clock, spoil numbers, refuse memory, start twice and stop peers, at random moments of a run that grows.

    python experiments/reliability/faults.py --tries=200 --seed=0 --workdir=/tmp/faults [--kinds=clock,peers]

Each kind is tried so often, and each try draws anew: when, where, how much and how often. It must end with the exit
code and the line that the guide has for it, without a traceback, and the same command started again, where it ended,
must end with the same bits as one that was left alone: records but for the clock, every array of the last checkpoint.

clock    the time of day jumps by up to years, several times; half of the runs are asked to stop, and go on
numbers  a NaN or an infinity in the gradients, a weight, the optimizer's state or what was grown, for one start or more
memory   an allocation that fails on the device or on the host, or a step that needs more than there is
folder   one or two more processes of the same command, some time after the first
peers    one of two processes of a job is killed, or stands still for a while or for ever

The first three are tried within this process; those on one folder are processes that have trained before, which are
told to start; peers are new ones, and their job is started again, with other faults, until it has ended. Prints
Markdown; exit code 1 unless all of that held. Ctrl-C ends it, and what is done is reported.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from killed import KINDS, Moment, replaced
from runs import arrays_of, call, options, records_of, write_run
from soak import FORKED, PRELOADED
from started import PATIENCE, Worker, failed, job

from growlm.training.checkpoint import quiet_writers
from growlm.training.goodput import process_seconds
from growlm.training.metrics import read_records

PLACES = {  # with how often a run comes there, at most
    "growlm.training.loop:Steps.train": 8,
    "growlm.training.loop:Steps.validate": 6,
    "growlm.training.loop:Recorder.record": 10,
    "growlm.training.mesh:place_batch": 12,
    "growlm.training.step:init_state": 1,
    "growlm.training.step:compile_steps": 2,
    "growlm.training.checkpoint:Checkpoints.save": 4,
    "growlm.training.checkpoint:restore_checkpoint": 1,
    "growlm.growth.state:apply_growth": 1,
}
RESTORED = "restore_checkpoint"  # by a start that goes on
LIMITED = "growlm.training.device_memory:device_bytes"
STEPS, STAGES = 8, 2  # of a run
STARTS = (1, 1, 1, 2, 3)  # that meet a fault
BAD, MARK, LEAVES = (np.nan, np.inf, -np.inf), 2**20, 12  # MARK: above all tokens. LEAVES: of a model
YEARS = 8.0  # log10 of the seconds of three years
MOST = 3  # processes on one folder
SHORT = 5.0  # seconds for which a peer may stand still without a loss
GONE = "growlm: another process of the job is gone: "
PAGES = ("Traceback", "SIGABRT", "Check failure", "*** ")


class Try(NamedTuple):
    """What was drawn for a try, how it ended, and what was wrong with that, "" where nothing was."""

    drawn: str
    ended: str
    wrong: str = ""
    open: bool = False  # the folder is gone on with in the next try


class Bench:
    """A folder with the config, the runs that were left alone, and the folder of the try under way."""

    def __init__(self, folder: Path, kinds: list[str]):
        self.folder, self.config, self.workers = folder, write_run(folder / "home"), []
        self.place = folder / "alone"
        with contextlib.closing(Worker()) as worker:  # by the step as it is, see `marked`
            if (ended := worker.start(self.command())())[0] != 0:
                raise RuntimeError(f"a run that is left alone ends with {ended}")
        self.want = self.ending()
        self.place, began = folder / "alone-two", time.monotonic()
        if "peers" in kinds:
            if failed(ended := job(self.command(), folder)):
                raise RuntimeError(f"two processes that are left alone end with {ended}")
            self.want_of_two, self.seconds_of_two = self.ending(), time.monotonic() - began
        for number in range(MOST if "folder" in kinds else 0):
            self.workers.append(Worker())
            self.place, began = folder / f"warm-{number}", time.monotonic()
            for _ in range(2):
                self.workers[-1].start(self.command())()
                shutil.rmtree(self.place)
                self.seconds, began = time.monotonic() - began, time.monotonic()

    def command(self) -> list[str]:
        """The command, which never changes for a try."""
        cache = f"--compilation_cache={self.folder / 'compiled'}"
        return ["train", f"--config={self.config}", f"--workdir={self.place}", cache]

    def start(self) -> tuple[int | None, str]:
        """Start the command within this process."""
        return call(self.command())

    def ending(self) -> Any:
        """What the run ended with."""
        return records_of(self.place), arrays_of(self.place)

    def again(self) -> str:
        """Start the command again; what is wrong with how it ends, "" where nothing is."""
        code, said = self.start()
        return self.unequal(self.want) if code == 0 else f"started again: exit code {code}: {said[-2000:]}"

    def unequal(self, want: Any) -> str:
        """What is wrong with the ending."""
        return "" if self.ending() == want else "it ended otherwise than one left alone"


def at(draw: random.Random, places: dict[str, int], act: Callable[[], Any]) -> tuple[str, Any]:
    """A moment in the run, which is drawn: its name, and the context in which something happens then, or is given."""
    place = draw.choice([*places])
    when, calls = draw.randint(1, places[place]), itertools.count(1)

    def wrap(function: Callable) -> Callable:
        def wrapped(*of: Any, **options: Any) -> Any:
            given = act() if next(calls) == when else None
            return function(*of, **options) if given is None else given

        return wrapped

    return place.rpartition(":")[2].rpartition(".")[2], replaced(place, wrap)


def unlike(code: int | None, said: str, want: int, pattern: str) -> str:
    """What is wrong with how a command ended, "" where nothing is."""
    if code != want or any(page in said for page in PAGES):
        return f"exit code {code} where {want} is documented: {said[-2000:]}"
    last = (said.strip().splitlines() or [""])[-1]
    return "" if re.search(pattern, last) else f"its last line is not {pattern!r}: {last}"


def stopped(bench: Bench, draw: random.Random) -> str:
    """Start a run that is asked to stop after a step; what is wrong with how it ends, "" where nothing is."""
    last, steps = draw.randint(1, STEPS - 1), itertools.count(1)
    with replaced("growlm.training.processes:all_stop", lambda _: lambda *of: next(steps) == last):
        code, said = bench.start()
    return unlike(code, said, 75, r"^growlm: stopped and saved at step")


def clock(bench: Bench, draw: random.Random) -> Try:
    """The time of day jumps while a run trains; it ends as if it had not."""
    now, now_ns, offset = time.time, time.time_ns, [0.0]
    jumps, stops = draw.randint(1, 6), draw.random() < 0.5
    drawn = f"{jumps} jumps" + (", and stopped" if stops else "")

    def jump() -> None:
        offset[0] += draw.choice((-1, 1)) * 10 ** draw.uniform(0, YEARS)

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: (setattr(time, "time", now), setattr(time, "time_ns", now_ns)))
        time.time, time.time_ns = lambda: now() + offset[0], lambda: now_ns() + int(offset[0] * 1e9)
        for _ in range(jumps):
            stack.enter_context(at(draw, PLACES, jump)[1])
        if stops:
            if wrong := stopped(bench, draw):
                return Try(drawn, "", wrong)
            for path in bench.place.rglob("*"):  # files of another time
                os.utime(path, (abs(time.time()), abs(time.time())))
        code, said = bench.start()
    if code != 0:
        return Try(drawn, "", f"exit code {code}: {said[-2000:]}")
    spent = [value for one in read_records(bench.place / "metrics.jsonl") for value in one["time"].values()]
    most = 3600 + 2 * process_seconds()  # a start counts what its process did before
    wrong = "" if all(0 <= value < most for value in spent) else f"its seconds are {spent}"
    return Try(drawn, "75, then 0" if stops else "0", wrong or bench.unequal(bench.want))


def numbers(bench: Bench, draw: random.Random) -> Try:
    """A number that is none; the run ends in a line, and without it goes on from what was good."""
    where = draw.choice(("gradients", "params", "opt_state", "grown params", "grown opt_state"))
    kind, n, starts, seed = draw.randrange(len(BAD)), draw.randint(1, STEPS), draw.choice(STARTS), draw.random()

    def spoilt(state: Any) -> Any:
        field, chosen = where.removeprefix("grown "), random.Random(seed)
        leaves, tree = jax.tree.flatten(getattr(state, field))
        number = chosen.choice([number for number, leaf in enumerate(leaves) if leaf.dtype == jnp.float32])
        leaf = np.array(leaves[number])
        leaf.flat[chosen.randrange(leaf.size)] = BAD[kind]
        leaves[number] = jax.device_put(leaf, leaves[number].sharding)
        return dataclasses.replace(state, **{field: jax.tree.unflatten(tree, leaves)})

    def in_step(train: Callable) -> Callable:
        def wrapped(steps: Any, state: Any, tokens_BS: Any) -> Any:
            now = int(state.step) + 1 == n
            if now and where == "gradients":
                mark = 1 + len(BAD) * random.Random(seed).randrange(LEAVES) + kind
                return train(steps, state, tokens_BS.at[0, 0].add(mark * MARK))
            return train(steps, spoilt(state) if now else state, tokens_BS)

        return wrapped

    def in_growth(grow: Callable) -> Callable:
        def wrapped(*of: Any, **options: Any) -> Any:
            state, report = grow(*of, **options)
            return spoilt(state), report

        return wrapped

    grown = where.startswith("grown")
    place = "growlm.growth.state:apply_growth" if grown else "growlm.training.loop:Steps.train"
    with replaced(place, in_growth if grown else in_step):
        for _ in range(starts):
            code, said = bench.start()
            if wrong := unlike(code, said, 1, r"^growlm: .*(between steps \d+ and \d+|after step \d+): stopped; "):
                return Try(where, "", f"{BAD[kind]} at step {n}, seed {seed}: {wrong}")
    return Try(where, f"1 in {starts} starts", bench.again())


def marked(gradients_of: Callable) -> Callable:
    """Gradients of which one has a value that is none where the first token of a batch says so, in its high bits."""

    def wrapped(spec: Any, params: Any, tokens_BS: jax.Array, *more: Any) -> Any:
        mark = tokens_BS[0, 0] // MARK
        parts, gradients = gradients_of(spec, params, tokens_BS.at[0, 0].add(-mark * MARK), *more)
        leaves, tree = jax.tree.flatten(gradients)
        for number, leaf in enumerate(leaves):
            value = leaf[(0,) * leaf.ndim]
            for kind, bad in enumerate(BAD):
                value = jnp.where(mark == 1 + len(BAD) * number + kind, bad, value)
            leaves[number] = leaf.at[(0,) * leaf.ndim].set(value)
        return parts, jax.tree.unflatten(tree, leaves)

    return wrapped


def memory(bench: Bench, draw: random.Random) -> Try:
    """Memory that is not to be had; the run says so in a line, and goes on where it is."""
    nbytes, ended = int(10 ** draw.uniform(2, 6)), "not met"
    what = draw.choice(("device", "host", "device", "host", "too little"))
    drawn, pages = what, f"RESOURCE_EXHAUSTED: Out of memory allocating {nbytes} bytes.\nand\nmore"

    def fail() -> None:
        raise jax.errors.JaxRuntimeError(pages) if what == "device" else MemoryError(f"Unable to allocate {nbytes}")

    for _ in range(draw.choice(STARTS)):
        if what == "too little":
            _, context = at(draw, {LIMITED: STAGES}, lambda: nbytes)
        else:
            place, context = at(draw, PLACES, fail)
            drawn = f"{what}, {place}"
            if place == RESTORED and not bench.place.exists() and (wrong := stopped(bench, draw)):
                return Try(drawn, "", wrong)
        with context:
            code, said = bench.start()
        if code == 0:
            break
        ended = "2 with what needs less"
        if wrong := unlike(code, said, 2, r"^growlm: stages\[\d\] .*(would fit|needs? less|that was tried fits)"):
            return Try(drawn, "", wrong)
    return Try(drawn, ended, bench.again())


def folder(bench: Bench, draw: random.Random) -> Try:
    """More processes on a folder that one trains in; each does it or is refused, and one does it."""
    count, began = draw.randint(2, MOST), time.monotonic()
    delays = [0.0, *sorted(draw.uniform(0, bench.seconds) for _ in range(count - 1))]
    waiting = []
    for worker, delay in zip(bench.workers, delays, strict=False):
        time.sleep(max(0.0, began + delay - time.monotonic()))
        waiting.append(worker.start(bench.command()))
    ended = [wait() for wait in waiting]
    codes = sorted(str(code) for code, _ in ended)
    wrong = "" if "0" in codes else f"none has done it: {codes}: {ended[0][1][-2000:]}"
    for code, said in ended:
        pattern = r"^growlm: \S+ is in use by another growlm process" if code else ""
        wrong = wrong or unlike(code, said, 2 if code else 0, pattern)
    return Try(f"{count} processes", " and ".join(codes), wrong or bench.again())


def peers(bench: Bench, draw: random.Random) -> Try:
    """One of two processes is gone or slow; the other one ends in a line, or waits, and both started again end it."""
    how, victim = draw.choice(("killed", "still for ever", "still for long", "still for a while")), draw.randrange(2)
    seconds = {"still for long": PATIENCE + draw.uniform(1, 4), "still for a while": draw.uniform(0.1, SHORT)}.get(how)
    kind = draw.choice([one for one in KINDS if not re.search("bucket|is read", one) and not KINDS[one].first * victim])
    delay = draw.uniform(0, KINDS[kind].delay if KINDS[kind].function else bench.seconds_of_two)
    by = signal.SIGKILL if how == "killed" else signal.SIGSTOP
    moment = Moment(kind, draw.randint(1, KINDS[kind].calls), delay, by)
    ended = job(bench.command(), bench.folder, moment, victim, seconds)
    (code, _), (other, said) = ended[victim], ended[1 - victim]
    drawn, codes, wrong = f"process {victim} {how}", f"{code} and {other}", ""
    if any(page in of for _, of in ended for page in PAGES):
        wrong = "a traceback"
    elif seconds is not None and seconds < PATIENCE and (code, other) != (0, 0):
        wrong = "the other one did not wait"
    elif other not in (0, 1) or (other == 1 and GONE not in said):
        wrong = "the other one did not end as documented"
    elif code not in (0, 1, -signal.SIGKILL):
        wrong = "it did not end as documented"
    if wrong:
        return Try(drawn, codes, f"{wrong}: {kind}, {codes}: {ended[0][1][-1500:]} | {ended[1][1][-1500:]}")
    done = (code, other) == (0, 0)
    return Try(drawn, codes, bench.unequal(bench.want_of_two) if done else "", open=not done)


FAULTS: dict[str, Callable[[Bench, random.Random], Try]] = {
    one.__name__: one for one in (clock, numbers, memory, folder, peers)
}


def report(found: dict[str, list[Try]], seed: int) -> str:
    """The tables, in Markdown."""
    lines = ["| fault | tries | drawn | ended | wrong |", "|---|---|---|---|---|"]
    for kind, tries in found.items():
        drawn, ended = (
            ", ".join(f"{text}: {count}" for text, count in sorted(collections.Counter(texts).items()))
            for texts in ([one.drawn for one in tries], [one.ended for one in tries if not one.wrong])
        )
        lines.append(f"| {kind} | {len(tries)} | {drawn} | {ended} | {sum(bool(one.wrong) for one in tries)} |")
    return "\n".join([*lines, json.dumps({"tries": sum(map(len, found.values())), "seed": seed})])


def main() -> int:
    """Make all tries; returns the exit code."""
    parser = options(__doc__)
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=[*FAULTS], help=",".join(FAULTS))
    args = parser.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # a start takes half the time
    FORKED.set_forkserver_preload(PRELOADED)
    quiet_writers()
    bench = Bench(args.workdir.absolute(), args.kinds)
    found: dict[str, list[Try]] = {kind: [] for kind in args.kinds}
    with contextlib.suppress(KeyboardInterrupt), replaced("growlm.training.step:_gradients", marked):
        for kind, number in ((kind, number) for number in range(args.tries) for kind in args.kinds):
            bench.place = bench.folder / kind
            one = FAULTS[kind](bench, random.Random(f"{args.seed} {kind} {number}"))
            if one.open and number == args.tries - 1 and failed(ended := job(bench.command(), bench.folder)):
                one = one._replace(wrong=f"started again: {ended}")
            found[kind].append(one)
            print(f"faults: {kind} {number}, {one.drawn}: {one.wrong or one.ended}", file=sys.stderr, flush=True)
            if one.wrong:
                bench.place.rename(bench.folder / f"{kind}-{number}")  # one that is wrong is kept
            elif not one.open:
                shutil.rmtree(bench.place)
    print(report(found, args.seed))
    return 1 if any(one.wrong for tries in found.values() for one in tries) else 0


if __name__ == "__main__":
    sys.exit(main())
