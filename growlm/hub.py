"""The Hugging Face hub: hf:ORG/NAME or hf:ORG/NAME@REVISION where a folder is taken, datasets, folders that are pushed.

What is downloaded lies in the hub's own cache, and is read from there alone under HF_HUB_OFFLINE=1. A snapshot there is
of one commit, which its path names: what a record says of it is read off the path.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from growlm.buckets import absolute, location, origin
from growlm.checked import CHECKSUMS
from growlm.errors import InputError, import_library, in_one_line, must_be

SCHEME = "hf:"
# No pickles and no code, whatever a config names; what lies in folders is of other programs.
WEIGHTS = "*.safetensors"
TEXTS = ("*.json", "*.txt", "*.jinja", "*.model", "vocab.bpe", "README.md", "LICENSE*", "NOTICE*", "USE_POLICY*")
IGNORED = ("*/*", "consolidated*")  # Mistral's own form: the same weights once more
EMPTY = {".gitattributes"}  # of a repository in which nothing is yet


def local_folder(source: Path | str, weights: bool = True) -> Path:
    """The folder that was meant: a path is itself, and hf:ORG/NAME is downloaded, unless the cache has it.

    Args:
      source: a path, hf:ORG/NAME, or hf:ORG/NAME@REVISION: a branch, a tag or a commit.
      weights: whether safetensors are needed beside config and tokenizer.

    Raises:
      InputError: no such repository or revision, no access, no network, no weights in safetensors.
    """
    text = str(source)
    if not text.startswith(SCHEME):
        return location(source)
    name, _, revision = text.removeprefix(SCHEME).partition("@")
    if not name or text.endswith("@"):
        raise must_be("a name on the hub", f"{SCHEME}ORG/NAME or {SCHEME}ORG/NAME@REVISION", text)
    hub = import_library("huggingface_hub")
    patterns = [*TEXTS, WEIGHTS] if weights else [*TEXTS]
    with _said(f"cannot read {text}"):
        found = hub.snapshot_download(
            name, revision=revision or None, allow_patterns=patterns, ignore_patterns=[*IGNORED]
        )
    folder = Path(found)
    if weights and not any(folder.glob(WEIGHTS)):
        raise InputError(f"{text} must have its weights as safetensors, got none: nothing else is downloaded")
    return folder


def pinned(folder: Path) -> str | None:
    """hf:ORG/NAME@COMMIT of a snapshot in the hub's cache; None of other folders."""
    commit = absolute(folder)
    kind, *name = commit.parent.parent.name.split("--")
    if commit.parent.name != "snapshots" or kind != "models" or not name:
        return None
    return f"{SCHEME}{'/'.join(name)}@{commit.name}"


def recorded(folder: Path) -> str:
    """What a record says of a folder: what `pinned` does, else the whole path; `local_folder` takes either again."""
    return pinned(folder) or origin(folder)


def name_of(record: str) -> str | None:
    """ORG/NAME of hf:ORG/NAME@REVISION; None of a path."""
    return record.removeprefix(SCHEME).partition("@")[0] if record.startswith(SCHEME) else None


def moves(place: str, before: str) -> bool:
    """Whether a place is a name on the hub without a revision, of which there was a commit before."""
    return name_of(place) is not None and "@" not in place and name_of(place) == name_of(before)


def find_dataset(name: str, revision: str | None) -> tuple[str, str]:
    """A dataset of the hub, of which nothing large is downloaded: it is streamed.

    Args:
      name: ORG/NAME.
      revision: a branch, a tag or a commit; None: the main one.

    Returns:
      (what `datasets.load_dataset` takes, the commit): the name, or under HF_HUB_OFFLINE=1 a folder of the cache.

    Raises:
      InputError: no such dataset or revision, no access, no network.
    """
    hub = import_library("huggingface_hub")
    with _said(f"cannot read {SCHEME}{name}"):
        if hub.constants.HF_HUB_OFFLINE:
            folder = Path(hub.snapshot_download(name, repo_type="dataset", revision=revision))
            return str(folder), folder.name
        return name, hub.HfApi().dataset_info(name, revision=revision).sha


def check_push(name: str, public: bool) -> None:
    """Raises InputError unless a folder can be pushed to ORG/NAME: new, or empty and as private as is asked for."""
    hub = import_library("huggingface_hub")
    if hub.get_token() is None:
        raise InputError(f"--push={name} needs a token with write access: hf auth login, or HF_TOKEN")
    with _said(f"cannot push to {name}"):
        try:
            found = hub.HfApi().model_info(name)
        except import_library("huggingface_hub.errors").RepositoryNotFoundError:
            return
    if taken := sorted({file.rfilename for file in found.siblings or ()} - EMPTY):
        raise must_be("--push", f"a new or empty repository; {name} has files", taken[0])
    if found.private is public:
        state, say = ("private", "without --public") if found.private else ("public", "with --public")
        raise InputError(f"--push: {name} is {state}: say so, {say}")


def push(folder: Path, name: str, public: bool) -> str:
    """Upload a folder to ORG/NAME, which is made where it is not there; returns hf:ORG/NAME@COMMIT.

    Raises InputError, and what is in the folder stays.
    """
    hub = import_library("huggingface_hub")
    with _said(f"{folder} is written, and cannot be pushed to {name}"):
        api = hub.HfApi()
        api.create_repo(name, private=not public, exist_ok=True)
        options = {"commit_message": "Written by growlm", "ignore_patterns": CHECKSUMS}  # there anyone may edit a file
        commit = api.upload_folder(repo_id=name, folder_path=folder, **options)
    return f"{SCHEME}{name}@{commit.oid}"


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    """Turns errors of the library, which have no common class, into InputErrors."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{what}: {in_one_line(error)}") from error
