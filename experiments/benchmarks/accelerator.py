"""What growlm does on one GPU, in one command of at most eight minutes.

    python experiments/benchmarks/accelerator.py --output=runs/card

`--tiny` runs all of it at shapes that a CPU takes, and says nothing about speed.

Every part is a process of its own, so that one that hangs, dies or needs what is not installed costs nothing but
itself. Each has a limit, and what the budget leaves. A part's results go to OUTPUT/results.jsonl and on the screen
as they are measured, what its libraries say to OUTPUT/NAME.log. So a cut leaves what was done, and the same command
with --parts=NAME,... does the rest; compiled programs are kept in OUTPUT/compiled. Parts, in their order:

    kernels      versions, the rate of one product, and which kernels a train step has: cuDNN, cuBLAS, Triton
    attention    growlm's against plain XLA: error against float32, time forward and backward
    loss         the loss in chunks of rows against all logits at once: values, time, memory
    step-1.1B    the train step: MFU by the FLOPs of causal attention, AdamW and Muon in turns, at two sizes of batch
    torch-1.1B   against PyTorch under torch.compile with cuDNN's attention, in turns where the card holds both
    growth       growing in copies of the grown model's bytes
    pause        a run that grows: the pause in steps, and the share of time that waits for data
    data         batches, in tokens a second of a core
    mixture      a Mixtral step against a dense one of equal active size, and the ways of its products
    generation   tokens a second of what `growlm sample` runs
    step-124M    the step at 124M, and against PyTorch
    torch-124M
    ladder       the next rung of experiments/ladder.py, for the time that is left; a later call goes on with it

Exit code: 0, or 1 if a part failed or was cut.

Result on one NVIDIA H200 (jax 0.11.2, torch 2.11, cuDNN 9.19; records in h200.jsonl): at 1.1B an MFU of 52.2 %, with
the layers in a loop 49.2 % and 1.12 of compiled PyTorch's tokens/s; Muon 1.06 of AdamW's time at 131,072 tokens in a
step, 1.41 at 16,384. Of the 266 ms, products take 176, at about 720 TFLOP/s, where one large product alone runs at 640
to 680; cuDNN's attention, with heads of 64, 39; what is elementwise 42, most of it at the memory's rate. growth,
pause, loss, 124M and ladder have not been run there: compiling PyTorch's 24 layers takes a minute and more, and the
card was lent for 15.
"""

import contextlib
import dataclasses
import faulthandler
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arguments import Parser, duration, exit_code
from card import take_memory_as_needed

from growlm.errors import InputError, unknown

COMMAND = [sys.executable, __file__]
RESULTS = "results.jsonl"
LEAST = 5.0  # seconds, with less of which a part is not begun
GRACE = 10.0  # seconds from the signal to end until a part is killed
STRETCH = 5  # of limits at tiny shapes: these take turns with whatever else a machine's cores do


@dataclasses.dataclass(frozen=True)
class Part:
    """A function of a `Task`, as module:name, and the seconds that it may take."""

    work: str
    seconds: float


PARTS = {
    "kernels": Part("accelerator_parts:kernels", 60),
    "attention": Part("accelerator_parts:attention_kernels", 60),
    "loss": Part("accelerator_parts:chunked_loss", 40),
    "step-1.1B": Part("accelerator_parts:step_1b", 120),
    "torch-1.1B": Part("accelerator_parts:torch_1b", 150),
    "growth": Part("accelerator_parts:growths", 60),
    "pause": Part("accelerator_parts:pause", 130),
    "data": Part("accelerator_parts:data_rate", 30),
    "mixture": Part("accelerator_parts:mixture", 90),
    "generation": Part("accelerator_parts:generation", 70),
    "step-124M": Part("accelerator_parts:step_124m", 70),
    "torch-124M": Part("accelerator_parts:torch_124m", 80),
    "ladder": Part("accelerator_parts:ladder", 3600),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What a part is asked: whether at tiny shapes, in which folder, and until when by `time.monotonic`."""

    part: str
    output: Path
    tiny: bool
    until: float

    def say(self, case: str, **values: Any) -> None:
        """Record a result and print it: numbers and words by name; what has no place in a line is only recorded."""
        record(self.output, {"part": self.part, "case": case, "tiny": self.tiny, **_origin(), **values})
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in values.items() if _has_place(value))
        print(f"{self.part:<11} {case:<24} {shown}", flush=True)


def record(output: Path, values: dict[str, Any]) -> None:
    """Append a line to the results, handed to the system at once."""
    with (output / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


@functools.cache
def _origin() -> dict[str, Any]:
    from growlm.training.metrics import commit, hardware  # JAX, which only the processes of parts load

    return {"hardware": hardware(), "commit": commit()}


def _has_place(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def run_here(part: str, output: Path, tiny: bool, seconds: float) -> int:
    """A part in this process. Returns 0, or 1 and its reason as a line in the results and on the screen."""
    take_memory_as_needed()
    faulthandler.register(signal.SIGTERM, chain=True)  # a part that is cut says in its log where it was
    task = Task(part, output, tiny, time.monotonic() + seconds)
    module, _, name = PARTS[part].work.partition(":")
    try:
        getattr(importlib.import_module(module), name)(task)
    except Exception as error:  # of any kind: what a card refuses is a result
        traceback.print_exc()
        first = next(filter(None, str(error).splitlines()), "")
        _ended(output, part, f"failed: {type(error).__name__}: {first}"[:300])
        return 1
    return 0


def _ended(output: Path, part: str, how: str, **more: Any) -> None:
    record(output, {"part": part, "ended": how, **more})
    print(f"{part:<11} {how}", flush=True)


def run_part(part: str, output: Path, tiny: bool, seconds: float) -> bool:
    """A part in a process of its own, for at most so many seconds. Returns whether it came to its end."""
    command = [*COMMAND, f"--output={output}", f"--here={part}", f"--budget={seconds:.1f}", *(["--tiny"] * tiny)]
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(output / "compiled"))
    began = time.monotonic()
    with (output / f"{part}.log").open("a", encoding="utf-8") as log:
        # A group of its own: with PyTorch's compiler come processes that would outlive it.
        child = subprocess.Popen(
            command, stderr=log, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}, process_group=0
        )
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(child)
    took = time.monotonic() - began
    if code == 0:
        record(output, {"part": part, "ended": "done", "seconds": took})
        return True
    if code is None:
        _ended(output, part, f"cut at its limit of {seconds:.0f} s", seconds=took)
    elif code != 1:  # of which it has said why
        _ended(output, part, f"failed: exit code {code}, see {part}.log", seconds=took)
    return False


def _end(child: subprocess.Popen) -> None:
    """Ends the processes of a part: they are asked to, and then killed."""
    with contextlib.suppress(ProcessLookupError):
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def benchmark(arguments: Sequence[str]) -> bool:
    """All that is asked for. Returns whether every part came to its end."""
    args = _read(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.here:
        return run_here(args.here, args.output, args.tiny, args.budget) == 0
    signal.signal(signal.SIGTERM, _leave)  # as `timeout` sends it: the part that runs is ended too
    ends, whole = time.monotonic() + args.budget, True
    record(args.output, {"budget": args.budget, "parts": args.parts, "python": sys.version.split()[0]})
    for part in args.parts:
        limit = PARTS[part].seconds * (STRETCH if args.tiny else 1)
        seconds = min(limit, ends - time.monotonic() - GRACE)
        if seconds < LEAST:
            _ended(args.output, part, f"not begun: of the budget of {args.budget:.0f} s too little is left")
            whole = False
            continue
        whole = run_part(part, args.output, args.tiny, seconds) and whole
    print(f"results: {args.output / RESULTS}")
    return whole


def _read(arguments: Sequence[str]) -> Any:
    parser = Parser(__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where results are added")
    parser.add_argument("--budget", type=duration, default=480.0, metavar="TIME", help="of all, such as 8m (default)")
    parser.add_argument("--parts", metavar="NAME[,NAME]", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="at shapes that prove the parts and measure nothing")
    parser.add_argument("--here", metavar="NAME", help="this part, in this process and without a limit")
    args = parser.parse_args(arguments)
    args.parts = args.parts.split(",") if args.parts else [*PARTS]
    for part in [*args.parts, *filter(None, [args.here])]:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
    if args.output.exists() and not args.output.is_dir():
        raise InputError(f"--output must be a folder, got {str(args.output)!r}")
    return args


def _leave(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, 1 where a part failed or was cut, 2 for bad input."""
    whole = True

    def work() -> None:
        nonlocal whole
        whole = benchmark(sys.argv[1:] if arguments is None else arguments)

    return exit_code("accelerator", work) or int(not whole)


if __name__ == "__main__":
    sys.exit(main())
