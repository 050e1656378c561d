"""The tasks of lm-evaluation-harness, by name, on data from the network or from local files.

A local task is a YAML file that includes the harness's own and names the files of its records. Groups and tags are the
harness's. The harness parses all of its fourteen thousand YAML files to know one task, which takes ten seconds: here
their text is searched for names, and only the folders of the tasks that are asked for are given to it. Imported only
where the extra `eval` is there.
"""

import collections
import contextlib
import difflib
import functools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager

from growlm.checked import parse_json
from growlm.errors import InputError, must_be

# The zero-shot tasks of the paper (arXiv 2405.15319): of tables 2 and 3, and of table 6, which is on 7B. Averages are
# those of all but the last, a perplexity.
PAPER = ("lambada_openai", "arc_challenge", "arc_easy", "logiqa", "piqa", "sciq", "winogrande", "wikitext")
PAPER_7B = (*PAPER[:7], "boolq", "hellaswag", "openbookqa", "wikitext")
GROUPS = {"paper": PAPER, "paper_7b": PAPER_7B}

# Raw text of WikiText instead of records, by the names under which it is passed on.
WIKITEXT = ("wikitext.txt", "wikitext-2-raw-test.txt", "wiki.test.raw")


# Lines of a task's YAML that may name it, its tags or the members of its group, and the file that it extends.
_NAMES = re.compile(r"""^[\s{]*["']?(?:-|(?:task|group|tag)["']?:)(.*)$""", re.M)
_INCLUDE = re.compile(r"""^["']?include["']?:\s*["']?([^\s"']+)""", re.M)


def named(tasks: Sequence[str]) -> list[str]:
    """The names, each once, with those of `GROUPS` for their group. Raises InputError for an unknown one."""
    names = list(dict.fromkeys(part for name in tasks for part in GROUPS.get(name, (name,))))
    known = load_index(tuple(names)).task_index
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, [*GROUPS, *folders_by_name()], n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise InputError(f"task must be {', '.join(GROUPS)} or one of `lm_eval ls tasks`, got {name!r}{hint}")
    if not names:
        raise InputError("tasks must be names of lm-evaluation-harness, or paper, got none")
    return names


@functools.cache
def folders_by_name() -> dict[str, set[Path]]:
    """The harness's folders with a YAML file that has this name as a task, group, tag or member; a superset."""
    folders = collections.defaultdict(set)
    for folder, _, files in os.walk(Path(lm_eval.tasks.__file__).parent):
        for file in files:
            if file.endswith(".yaml"):
                for name in _names_in(Path(folder, file)):
                    folders[name].add(Path(folder))
    return dict(folders)


@functools.cache
def _names_in(path: Path) -> frozenset[str]:
    """Names in a YAML file and in those that it includes."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return frozenset()
    found = {word.strip("\"' ,") for line in _NAMES.findall(text) for word in line.strip(" []").split(",")}
    return frozenset(found).union(*(_names_in(path.parent / other) for other in _INCLUDE.findall(text)))


@functools.lru_cache(maxsize=8)
def load_index(names: tuple[str, ...]) -> TaskManager:
    """The harness's index of these names and of what groups and tags among them are made of."""
    wanted = set(names)
    while True:
        folders = {folder for name in wanted for folder in folders_by_name().get(name, ())}
        outermost = [folder for folder in folders if folders.isdisjoint(folder.parents)]
        harness = TaskManager(include_defaults=False)
        for folder in sorted(outermost, key=lambda folder: f"{folder}/"):  # given several, it would drop parts of tags
            for name, entry in TaskManager(include_path=folder, include_defaults=False).task_index.items():
                harness.task_index.setdefault(name, entry).tags.update(entry.tags)
        _, elsewhere = _expanded(harness, names)
        if not (more := (elsewhere & folders_by_name().keys()) - wanted):
            return harness
        wanted |= more


@contextlib.contextmanager
def manager(names: Sequence[str], data_dir: Path | None, shots: int | None = None) -> Iterator[TaskManager]:
    """A context with the harness's index of tasks, on the datasets that they name or on the files of a folder.

    Args:
      names: known names, as `named` returns them.
      data_dir: a folder with TASK.jsonl for every task, the records that are evaluated, with the fields of the task's
        own dataset; TASK.SPLIT.jsonl for another split, such as mmlu_anatomy.dev.jsonl; for wikitext also its raw text.
      shots: examples before a question; None is the task's own number.

    Raises:
      InputError: a file is missing, or holds no records with equal fields.
    """
    harness = load_index(tuple(names))
    if data_dir is None:
        yield harness
        return
    if not data_dir.is_dir():
        raise must_be("data_dir", "a folder with a file TASK.jsonl for every task", str(data_dir))
    entries, _ = _expanded(harness, names)
    _check_files(entries, data_dir, shots)
    with tempfile.TemporaryDirectory() as folder:
        for number, entry in enumerate(entries.values()):
            unchanged = {"include": str(entry.yaml_path), "group": entry.name}
            settings = _local(entry, data_dir, Path(folder)) if _is_task(entry) else unchanged
            Path(folder, f"{number}.yaml").write_text(json.dumps(settings))  # JSON is YAML
        yield TaskManager(include_path=folder, include_defaults=False)


def _is_task(entry: Any) -> bool:
    return entry.kind.name in ("TASK", "PY_TASK")


def _expanded(harness: TaskManager, names: Iterable[str]) -> tuple[dict[str, Any], set[str]]:
    """Entries of tasks and groups by name, those within groups and tags too; and the names that have none."""
    entries, elsewhere, todo = {}, set(), collections.deque(names)
    while todo:
        name = todo.popleft()
        entry = harness.task_index.get(name)
        if entry is None:
            elsewhere.add(name)
        elif entry.kind.name == "TAG":
            todo.extend(sorted(entry.tags))
        elif name not in entries:
            entries[name] = entry
            if not _is_task(entry):
                todo.extend(_members(entry.cfg.get("task") or []))
    return entries, elsewhere


def _members(task: Any) -> Iterator[str]:
    """Names in the field `task` of a group, which may hold settings of tasks and groups of its own."""
    if isinstance(task, str):
        yield task
    elif isinstance(task, list):
        for member in task:
            yield from _members(member)
    else:
        yield from _members(task.get("task") or task.get("group") or [])


def _splits(entry: Any) -> tuple[str, dict[str, str]]:
    """The split that is evaluated; and the task's splits by setting, such as `test_split`."""
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
            raise InputError(f"task {name} makes its data itself: run it without data_dir")
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
        raise InputError(f"data_dir must hold a file TASK.jsonl for every task, {data_dir} lacks {shown}")


def _check_records(file: Path) -> None:
    """Raises InputError unless there is an object on every line, and all have the fields of the first."""
    fields: set[str] = set()
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = parse_json(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise InputError(f"{file} line {number} must be a JSON object")
            fields = fields or set(record)
            if lacking := sorted(fields - set(record)):
                raise InputError(f"{file} line {number} must have the fields of line 1, it lacks {lacking[0]!r}")
        if not lines.tell():
            raise InputError(f"{file} must hold a JSON object a line, got no line")


def _local(entry: Any, data_dir: Path, folder: Path) -> dict[str, Any]:
    """The settings of a task that reads the files of its splits; a split without a file is switched off."""
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
