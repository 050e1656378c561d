"""The tasks of lm-evaluation-harness, by name, on data from the network or from local files.

A local task is the harness's own, with its data put under it: a YAML file that includes the task's and says where
its records lie. Groups and tags are the harness's too. Imported only where the extra `eval` is there.
"""

import collections
import contextlib
import difflib
import functools
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from growlm.errors import InputError

# The zero-shot tasks of the paper (arXiv 2405.15319, table 3); its average is that of the first seven accuracies.
PAPER = ("lambada_openai", "arc_challenge", "arc_easy", "logiqa", "piqa", "sciq", "winogrande", "wikitext")
AVERAGED = PAPER[:7]

# Raw text of WikiText instead of records, by the names under which it is passed on.
WIKITEXT = ("wikitext.txt", "wikitext-2-raw-test.txt", "wiki.test.raw")


@functools.cache
def all_tasks() -> TaskManager:
    """Every task, group and tag of the harness: some ten thousand files are read, once in a process."""
    return TaskManager()


def named(tasks: Sequence[str]) -> list[str]:
    """The names with `paper` as the eight that it stands for, each once. Raises InputError for one that is unknown."""
    names = list(dict.fromkeys(part for name in tasks for part in (PAPER if name == "paper" else (name,))))
    known = all_tasks().task_index
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, ["paper", *known], n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise InputError(f"unknown task {name!r}: {hint}allowed: paper, and the names of lm_eval ls tasks")
    if not names:
        raise InputError("there are no tasks: allowed are names of lm-evaluation-harness, or paper")
    return names


@contextlib.contextmanager
def manager(names: Iterable[str], data_dir: Path | None, shots: int | None = None) -> Iterator[TaskManager]:
    """What loads these tasks: with the data that they name, or with that of a folder, while the context lasts.

    Args:
      names: as `named` gives them.
      data_dir: holds TASK.jsonl, the records that are evaluated, for every task, with the fields of the task's own
        dataset; TASK.SPLIT.jsonl for another split, such as mmlu_anatomy.dev.jsonl; for wikitext also its raw text.
      shots: examples before a question; None is as the task has it.

    Raises:
      InputError: a file is missing, or is not what it should be.
    """
    if data_dir is None:
        yield all_tasks()
        return
    if not data_dir.is_dir():
        raise InputError(f"data_dir {data_dir} is no folder: allowed is one with a file TASK.jsonl for every task")
    entries = _needed(names)
    _check_files(entries, data_dir, shots)
    with tempfile.TemporaryDirectory() as folder:
        for number, entry in enumerate(entries.values()):
            settings = _local(entry, data_dir, Path(folder)) if _is_task(entry) else _as_it_is(entry)
            Path(folder, f"{number}.yaml").write_text(json.dumps(settings))  # JSON is YAML
        yield TaskManager(include_path=folder, include_defaults=False)


def _is_task(entry: Any) -> bool:
    return entry.kind.name in ("TASK", "PY_TASK")


def _needed(names: Iterable[str]) -> dict[str, Any]:
    """The harness's entries of these names, and of all that groups and tags among them are made of."""
    index, found, todo = all_tasks().task_index, {}, collections.deque(names)
    while todo:
        name = todo.popleft()
        if name in found or name not in index:
            continue
        entry = index[name]
        if entry.kind.name == "TAG":
            todo.extend(sorted(entry.tags))
            continue
        found[name] = entry
        if not _is_task(entry):
            members = entry.cfg.get("task") or []
            members = members if isinstance(members, list) else [members]
            todo.extend(m if isinstance(m, str) else m.get("task") or m.get("group") for m in members)
    return found


def _as_it_is(entry: Any) -> dict[str, Any]:
    return {"include": str(entry.yaml_path), "group": entry.name}


def _splits(entry: Any) -> tuple[str, dict[str, str]]:
    """The split that is evaluated, and those that the task names, by what it names them for."""
    kinds = ("training_split", "validation_split", "test_split", "fewshot_split")
    splits = {kind: entry.cfg[kind] for kind in kinds if entry.cfg.get(kind)}
    if inner := (entry.cfg.get("fewshot_config") or {}).get("split"):
        splits["fewshot_split"] = inner
    return splits.get("test_split") or splits.get("validation_split") or "test", splits


def _records(entry: Any, data_dir: Path, split: str) -> Path | None:
    """The file with a split's records, if there is one."""
    evaluated, _ = _splits(entry)
    names = [f"{entry.name}.{split}.jsonl"] + ([f"{entry.name}.jsonl"] if split == evaluated else [])
    names += WIKITEXT if entry.name == "wikitext" and split == evaluated else ()
    return next((data_dir / name for name in names if (data_dir / name).is_file()), None)


def _check_files(entries: dict[str, Any], data_dir: Path, shots: int | None) -> None:
    missing = []
    for name, entry in entries.items():
        if not _is_task(entry):
            continue
        if entry.kind.name == "PY_TASK" or entry.cfg.get("custom_dataset"):
            raise InputError(f"task {name} makes its data itself: allowed is to run it without data_dir")
        evaluated, splits = _splits(entry)
        if (file := _records(entry, data_dir, evaluated)) is None:
            missing.append(f"{name}.jsonl" + (f" or {WIKITEXT[0]}" if name == "wikitext" else ""))
        elif file.suffix == ".jsonl":
            _check_records(file)
        examples = entry.cfg.get("num_fewshot") if shots is None else shots
        split = splits.get("fewshot_split") or splits.get("training_split")
        if examples and split and not _records(entry, data_dir, split):
            missing.append(f"{name}.{split}.jsonl (of which {examples} stand before a question)")
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise InputError(f"data_dir {data_dir} lacks {shown}: allowed is a file for every task, TASK.jsonl")


def _check_records(file: Path) -> None:
    """Raises InputError unless there is an object on every line, and all have the fields of the first."""
    fields: set[str] = set()
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise InputError(f"{file} line {number} is no record: allowed is a JSON object on every line")
            fields = fields or set(record)
            if lacking := sorted(fields - set(record)):
                raise InputError(f"{file} line {number} has no {lacking[0]!r}: allowed are records with equal fields")
        if not lines.tell():
            raise InputError(f"{file} is empty: allowed is a JSON object on every line")


def _local(entry: Any, data_dir: Path, folder: Path) -> dict[str, Any]:
    """The task with its data from files: of the splits that it names, those that are there."""
    evaluated, splits = _splits(entry)
    files = {split: _records(entry, data_dir, split) for split in {evaluated, *splits.values()}}
    data_files = {split: str(_as_records(file, folder)) for split, file in files.items() if file}
    return {
        "include": str(entry.yaml_path),
        "task": entry.name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": data_files, "cache_dir": str(folder / "cache")},
        **{kind: split if split in data_files else None for kind, split in splits.items()},
    }


def _as_records(file: Path, folder: Path) -> Path:
    """The file, or the raw text of WikiText as records of a page each."""
    if file.suffix == ".jsonl":
        return file
    pages = folder / f"{file.name}.jsonl"
    pages.write_text("".join(json.dumps({"page": page}) + "\n" for page in cut_pages(file.read_text(encoding="utf-8"))))
    return pages


def cut_pages(text: str) -> list[str]:
    """The articles of raw WikiText, each from its heading ` = Title = ` on; sections have more signs (` = = `).

    The pages of the data set EleutherAI/wikitext_document_level, of which the harness's task is made.
    """
    starts = [match.start() for match in re.finditer(r"(?m)^[^\S\n]*= (?!=)[^\n]*(?<!=) =[^\S\n]*$", text)]
    pages = [text[start:end] for start, end in zip([0, *starts], [*starts, None], strict=True)]
    # A page's last line break belongs to the line between: it is left out, as where lines are joined again.
    pages = [page.removesuffix("\n") for page in pages[:-1]] + pages[-1:]
    return [page for page in pages if page.strip()]
