"""Sources that datatrove reads: files in buckets, WARC, CSV and others, and what its steps keep and make of them.

Which documents a part holds depends on the files alone, so that any number of processes write the same shards.
"""

import copy
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from growlm.data.documents import Document, Reading, of_record
from growlm.data.shards import hash_blocks
from growlm.data.textfiles import File, group_files
from growlm.errors import InputError, import_library, in_one_line, must_be

# Under which names file systems say what a file holds, or which version of it this is.
DIGESTS = ("md5Hash", "ETag", "etag", "blob_id")


@dataclass(frozen=True)
class ReaderPart:
    """Files that the first of some steps reads, by their names in its folder; the others follow it."""

    steps: tuple[Any, ...]
    files: tuple[File, ...]

    def documents(self, reading: Reading) -> Iterator[Document]:
        """One document for each that comes out of the last step; its metadata are the fields that filters see."""
        reader, *others = copy.deepcopy(self.steps)  # they count what goes through them
        documents = reader.read_files_shard([file.path for file in self.files])
        for step in others:
            documents = step(documents, 0, 1)
        where = reader.data_folder.path
        try:
            for each in documents:
                record = {**each.metadata, reading.field: each.text}
                if document := of_record(record, f"document {each.id} of {where}", reading):
                    yield document
        except InputError:
            raise
        except Exception as error:  # of any of the steps, which have no common class
            raise InputError(f"cannot read {where}: {in_one_line(error)}") from error


def read_pipeline(steps: Sequence[Any]) -> list[ReaderPart]:
    """The parts of a source that is a list of datatrove's steps. Files are listed, some blocks of local ones read.

    Args:
      steps: a reader of files, such as ParquetReader("gs://bucket/web"), then any that look at one document at a time.
        They must be picklable: filters by functions of a module.

    Raises:
      InputError: the first step reads no files, there are none, a step cannot be pickled, or the extra `data` is not
        installed.
    """
    base = import_library("datatrove.pipeline.readers.base").BaseDiskReader
    first: Any = next(iter(steps), None)
    if not isinstance(first, base):
        raise must_be("the first step of a source", "a reader of files of datatrove", type(first).__name__)
    try:
        pickle.dumps(list(steps))
    except Exception as error:
        raise InputError(
            f"steps of a source must be picklable, as functions of a module are: {in_one_line(error)}"
        ) from None
    files = [_file(first.data_folder, name) for name in _names(first)]
    return [ReaderPart(tuple(steps), group) for group in group_files(files, lambda file, size: [file])]


def settings_of(step: Any) -> dict[str, Any]:
    """A step by its name and those of its settings that are plain values, and its folder."""
    values = {name: getattr(value, "path", value) for name, value in vars(step).items() if name[0] != "_"}
    plain = {name: value for name, value in values.items() if isinstance(value, str | int | float | list | None)}
    return {"step": type(step).__name__, **plain}


def _names(reader: Any) -> list[str]:
    """The files of a reader, as it would share them out to one task."""
    folder = reader.data_folder
    try:
        if reader.paths_file:
            shard = import_library("datatrove.io").get_shard_from_paths_file
            names = list(shard(reader.paths_file, 0, 1))
        else:
            names = folder.get_shard(0, 1, recursive=reader.recursive, glob_pattern=reader.glob_pattern)
    except OSError as error:
        raise InputError(f"cannot read {folder.path}: {error}") from error
    if not names:
        raise InputError(f"{folder.path} must hold files to read, got none")
    return names


def _file(folder: Any, name: str) -> File:
    """A file with what its file system says of its content; of a local one, what its blocks say."""
    try:
        info = folder.info(name)
        digest = next((str(info[key]) for key in DIGESTS if info.get(key)), None)
        if digest is None:
            with folder.open(name, "rb") as stream:
                digest = hash_blocks(stream)
    except OSError as error:
        raise InputError(f"cannot read {name} of {folder.path}: {error}") from error
    return File(name, info["size"], digest)
