"""Fill the disk at random moments of training, converting, growing and preparing; make room, and do it again.

    python experiments/reliability/full_disk.py --tries=200 --seed=0 --workdir=/tmp/full

Every try is a file system of its own in memory (tmpfs, so that it needs root) whose size is drawn between nothing and
what the command needs; every fourth can only be read. The command must end with exit code 2 and a line, and nothing
half-written may be where it looks whole. Then there is room, and the same command must end with the same files as one
that was never short of it. Prints Markdown; exit code 1 unless all of that held. Ctrl-C ends it, and what is done is
reported.
"""

import collections
import contextlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runs import arrays_of, call, options, records_of, write_run

from growlm.formats.folder import is_hugging_face, open_folder
from growlm.training.checkpoint import quiet_writers
from growlm.training.saved import find_saved

ROOM = 2**26  # bytes: more than any of the commands writes


def commands(home: Path, disk: Path) -> dict[str, list[str]]:
    """The commands, which write to disk/out."""
    return {
        "train": ["train", f"--config={home / 'run.py'}", f"--workdir={disk / 'out'}"],
        "convert": ["convert", f"--source={home / 'run'}", f"--output={disk / 'out'}", "--to=huggingface"],
        "grow": ["grow", f"--source={home / 'run'}", f"--output={disk / 'out'}", "--factor=2", "--no_verify"],
        "prepare": [
            *("prepare", f"--source={home / 'corpus.txt'}", f"--output={disk / 'out'}"),
            *("--tokenizer=bytes", "--workers=1"),
        ],
    }


def begin(home: Path) -> None:
    """A corpus, the config of a run with a growth, and that run."""
    write_run(home)
    code, said = call(["train", f"--config={home / 'run.py'}", f"--workdir={home / 'run'}"])
    if code:
        raise RuntimeError(said)


@contextlib.contextmanager
def disk_of(place: Path, nbytes: int) -> Iterator[None]:
    """A file system of so many bytes at a place."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def change(place: Path, options: str) -> None:
    """Change a file system: its size, whether it can be written to."""
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def written(name: str, folder: Path) -> Any:
    """What a command has written, without what the clock says."""
    if name == "train":
        return records_of(folder), arrays_of(folder)
    if name == "grow":
        return arrays_of(folder)
    kinds = (".safetensors", ".bin", ".idx")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in kinds}


def looks_whole(folder: Path) -> None:
    """Read what is there by those who would take it for whole. Raises for what is half of something."""
    if is_hugging_face(folder):
        open_folder(folder)
    elif (folder / "model.json").exists():
        find_saved(folder)


def attempt(name: str, home: Path, disk: Path, nbytes: int, locked: bool, want: Any) -> str:
    """One try: what was wrong with it, or "refused" or "there was room"."""
    arguments = commands(home, disk)[name]
    with disk_of(disk, nbytes):
        if locked:
            change(disk, "ro")
        code, said = call(arguments)
        last = said.strip().splitlines()[-1:] or [""]
        if code not in (0, 2):
            return f"exit code {code}: {said[-2000:]}"
        if code and not last[0].startswith("growlm: "):
            return f"its last line is no message: {last[0]}"
        if code and name != "train" and (disk / "out").exists():
            looks_whole(disk / "out")
        change(disk, f"rw,size={ROOM}")
        again, said = call(arguments) if code else (0, "")
        if again:
            return f"with room: {said[-2000:]}"
        if written(name, disk / "out") != want:
            return "it ended otherwise than one that had room"
        return "refused" if code else "there was room"


def main() -> int:
    """Make all tries; returns the exit code."""
    args = options(__doc__).parse_args()
    home, draw = args.workdir.absolute() / "home", random.Random(args.seed)
    quiet_writers()
    begin(home)
    disk, want, needs = home.with_name("disk"), {}, {}
    for name, arguments in commands(home, disk).items():
        with disk_of(disk, ROOM):
            code, said = call(arguments)
            if code:
                raise RuntimeError(said)
            want[name], needs[name] = written(name, disk / "out"), shutil.disk_usage(disk).used
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    with contextlib.suppress(KeyboardInterrupt):  # then what is done is reported
        for number in range(args.tries):
            name = draw.choice(list(want))
            nbytes = max(4096, int(draw.random() * needs[name]))
            said = attempt(name, home, disk, nbytes, number % 4 == 3, want[name])
            found[name, said] += 1
            if said not in ("refused", "there was room"):
                print(f"full_disk: try {number}, {name} with {nbytes:,} bytes: {said}", file=sys.stderr, flush=True)
    print("| command | tries | refused in a line | had room | wrong |\n|---|---|---|---|---|")
    for name in want:
        tries = sum(count for (one, _), count in found.items() if one == name)
        refused, room = found[name, "refused"], found[name, "there was room"]
        print(f"| {name} | {tries} | {refused} | {room} | {tries - refused - room} |")
    print(json.dumps({"tries": sum(found.values()), "seed": args.seed}))
    return 1 if any(said not in ("refused", "there was room") for _, said in found) else 0


if __name__ == "__main__":
    sys.exit(main())
