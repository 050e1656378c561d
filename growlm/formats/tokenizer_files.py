"""The tokenizer of the corpus that a run was trained on, as the files that transformers reads."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from growlm.data.shards import check_tokenizer, read_manifest
from growlm.data.shards import fingerprint as fingerprint_of
from growlm.data.tokenizers import BYTE_TOKENIZER, JSON, MODEL, SETTINGS, VOCABULARY, load_tokenizer
from growlm.errors import InputError
from growlm.files import write_json
from growlm.formats.safetensors_files import read_json

# Which class of transformers reads which file. Unless one is named it takes that of the model, with its own rules.
CLASSES = {JSON: "PreTrainedTokenizerFast", MODEL: "LlamaTokenizer", VOCABULARY: "GPT2Tokenizer"}


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer adds to a Hugging Face folder.

    files: copied as they are. written: JSON by name of file, after that. ids: of its special tokens, for config.json.
    """

    files: tuple[Path, ...] = ()
    written: dict[str, Any] = dataclasses.field(default_factory=dict)
    ids: dict[str, int | None] = dataclasses.field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes what is not copied."""
        for name, value in self.written.items():
            write_json(folder / name, value)


def tokenizer_files(corpus: str, fingerprint: str) -> TokenizerFiles:
    """Those of a corpus; of bytes, which no file is for, the ids alone. Where they are gone, stderr has a line more."""
    try:
        return _found(corpus, fingerprint)
    except InputError as error:
        print(f"growlm: no tokenizer comes along: {error}", file=sys.stderr, flush=True)
        return TokenizerFiles()


def _found(corpus: str, fingerprint: str) -> TokenizerFiles:
    folder = Path(corpus)
    if corpus != "stdlib" and not folder.exists():
        raise InputError(f"corpus {corpus!r} is not here any more")
    manifest = read_manifest(folder)
    if manifest is None:
        return TokenizerFiles(ids={"bos_token_id": None, "eos_token_id": load_tokenizer(BYTE_TOKENIZER).eos})
    if fingerprint_of(manifest) != fingerprint:
        raise InputError(f"corpus {corpus!r} has changed since the run was trained")
    check_tokenizer(folder, manifest)
    held = manifest["tokenizer"]
    ids = {f"{name}_token_id": held[name] for name in ("bos", "eos")}
    files = tuple(folder / name for name in held["files"] if name != SETTINGS)
    return TokenizerFiles(files, _written(folder, files[0].name) if files else {}, ids)


def _written(folder: Path, name: str) -> dict[str, Any]:
    """Documents were trained on with EOS after them and nothing before: no BOS may come in where transformers reads."""
    own = {"tokenizer_class": CLASSES[name], "add_bos_token": False, "clean_up_tokenization_spaces": False}
    written = {SETTINGS: read_json(folder / SETTINGS) | own}
    held = read_json(folder / JSON) if name == JSON else {}
    if (held.get("post_processor") or {}).get("type", "ByteLevel") != "ByteLevel":  # which adds nothing
        written[JSON] = held | {"post_processor": None}
    return written
