"""`growlm convert`: a Hugging Face folder to one of growlm's, and back; values and dtypes stay as they are.

What a folder of ours holds of an import lies in its `huggingface/`: config.json, the tokenizer, and the dtypes in which
the weights were stored, so that they can go back as they came. What was not imported gets its corpus's tokenizer.
"""

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from growlm.buckets import here
from growlm.checked import CHECKSUMS, accepted, check_files
from growlm.commands.options import PUSHING, STEP, Keys, check_push, flag, one, place, push
from growlm.data.mixture import first_corpus, parts_of
from growlm.data.shards import check_tokenizer, read_manifest
from growlm.data.shards import fingerprint as fingerprint_of
from growlm.data.tokenized import is_tokenized, tokenizer_source
from growlm.data.tokenizers import BYTE_TOKENIZER, JSON, MODEL, SETTINGS, VOCABULARY, load_tokenizer
from growlm.errors import InputError, check_name, must_be
from growlm.files import check_output, check_space, inside, read_object, write_json, write_sealed
from growlm.formats.card import growth_lines, write_card
from growlm.formats.export import LENGTH, progress_bar, write_model
from growlm.formats.folder import (
    CARRIED,
    CONFIG,
    TOKENIZERS,
    HuggingFaceFolder,
    describe_folder,
    describe_model,
    is_hugging_face,
    open_folder,
    read_params,
)
from growlm.formats.layout import settings_of
from growlm.growth import describe_lost
from growlm.growth.plan import initial_provenance
from growlm.growth.verify import describe_verdict
from growlm.hub import local_folder, name_of, recorded
from growlm.models import parameter_count
from growlm.state import TrainState
from growlm.training.optimizer import OptimizerConfig, make_optimizer
from growlm.training.saved import (
    GROWTH_FILE,
    IMPORTED,
    MODEL_FILE,
    ORIGIN,
    STORED_DTYPES,
    VERIFY_FILE,
    Saved,
    check_open,
    find_saved,
    of_the_newest,
    read_state,
    save_grown,
    save_imported,
)
from growlm.training.step import abstract_state, run_keys

OPTIONS = {
    "--source": one("DIR", "a Hugging Face folder or hf:ORG/NAME, a run or one of growlm grow", place, required=True),
    "--output": one("DIR", "new folder", place),
    "--to": one("FORMAT", "huggingface or growlm"),
    "--dtype": one("NAME", "dtype of exported weights (default: as imported, else float32)"),
    "--step": STEP,
    **PUSHING,
    "--describe": flag("print what the source is, and write nothing"),
    "--accept": flag("take the .json files of the source as you changed them: write their checksums anew"),
}
FORMATS = ("huggingface", "growlm")

# Which class of transformers reads which file. Unless one is named it takes that of the model, with its own rules.
CLASSES = {JSON: "PreTrainedTokenizerFast", MODEL: "LlamaTokenizer", VOCABULARY: "GPT2Tokenizer"}


@of_the_newest
def convert_folder(source: Path, output: Path, to: str, dtype: str | None = None, step: int | None = None) -> None:
    """Write a folder of the other kind.

    Args:
      source: a Hugging Face folder, also as hf:ORG/NAME, or one of `growlm train`, `growlm grow` or this.
      output: a new or empty folder.
      to: "huggingface" or "growlm".
      dtype: of the weights that Hugging Face gets; as they were stored by default, else float32.
      step: of a run; its last by default.

    Raises:
      InputError: a source that is damaged, unsupported or of that kind already, an output that is there, no room.
    """
    check_name("format", to, FORMATS)
    check_output(output)
    source = local_folder(source)
    if to == "huggingface":
        if is_hugging_face(source):
            raise InputError(f"source {source} is a Hugging Face folder already (--to=growlm converts it)")
        _export(find_saved(source, step), output, dtype)
        return
    if (source / MODEL_FILE).exists() or ((source / CONFIG).is_file() and not is_hugging_face(source)):
        raise InputError(f"source must be a Hugging Face folder, got {source} (of growlm: --to=huggingface)")
    if dtype is not None or step is not None:
        raise InputError("--dtype and --step are of --to=huggingface, and cannot be given with --to=growlm")
    _import(open_folder(source), output)


def describe(folder: Path | str) -> str:
    """What a folder holds, as text: one of Hugging Face, of `growlm train` or of `growlm grow`. No weight is read.

    Raises InputError as `read_model` does.
    """
    folder = local_folder(folder)
    if is_hugging_face(folder):
        return describe_folder(open_folder(folder))
    saved = find_saved(folder)
    config = saved.folder / IMPORTED / CONFIG
    origin = f"imported, {read_object(config)['model_type']}" if config.exists() else "not imported"
    return describe_model(saved.model, f"growlm, step {saved.step:,}", {"origin": origin})


def accept(folder: Path) -> list[str]:
    """Write the checksums of the JSON files that were changed in a folder anew; returns which these are.

    Raises InputError where there are no checksums, DamagedError where anything else is not as it was written.
    """
    changed, record = accepted(folder)
    write_sealed(folder / CHECKSUMS, record)
    return changed


def _import(source: HuggingFaceFolder, output: Path) -> None:
    """Write a training state at step 0, whose optimizer has seen nothing."""
    model, optimizer = source.model, OptimizerConfig()
    abstract = abstract_state(model, optimizer)
    check_space(output, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract.arrays)))
    with progress_bar("reading", source.nbytes) as bar:
        params = jax.tree.map(jax.numpy.asarray, read_params(source, bar.update))
    state = TrainState(
        params=params,
        opt_state=make_optimizer(optimizer, model).init(params),
        step=np.int64(0),
        tokens=np.int64(0),
        examples=np.int64(0),
        key=run_keys(0)[1],
        provenance=initial_provenance(model),
    )
    save_grown(
        output,
        model,
        optimizer,
        state,
        growth={"imported_from": recorded(source.folder), "family": source.family.model_type},
        beside=lambda part: save_imported(part, source),
    )


def _export(saved: Saved, output: Path, dtype: str | None) -> None:
    imported, settings, dtypes = saved.folder / IMPORTED, {}, None
    check_open(saved)
    if imported.is_dir():
        check_files(imported)
        settings = read_object(inside(imported, CONFIG))
        dtypes = read_object(inside(imported, STORED_DTYPES))
        if dtype:
            settings["dtype" if "dtype" in settings else "torch_dtype"] = dtype
            dtypes = dict.fromkeys(dtypes, dtype)
        else:
            (dtype, _), *_ = Counter(dtypes.values()).most_common(1)  # of layers that came by growth
    else:
        settings["max_position_embeddings"] = saved.data.length if saved.data else LENGTH
    settings_of(saved.model, settings)  # refused before anything is read
    carried = [inside(imported, name) for name in CARRIED if (imported / name).exists()]
    tokenizer = TokenizerFiles()
    if saved.data and not any(path.name in TOKENIZERS for path in carried):
        tokenizer = tokenizer_files(first_corpus(saved.data.corpus), parts_of(saved.data.fingerprint))
    write_model(
        output,
        saved.model,
        read_state(saved).params,
        dtype=dtype or "float32",
        dtypes=dtypes,
        settings=settings | tokenizer.ids,
        carried=[*carried, *tokenizer.files],
        beside=partial(_write_beside, saved, tokenizer),
    )


def _write_beside(saved: Saved, tokenizer: "TokenizerFiles", folder: Path) -> None:
    """The rest of an exported folder: what of a tokenizer is not copied, and the card."""
    tokenizer.write(folder)
    imported = saved.folder / IMPORTED
    origin = read_object(imported / ORIGIN) if (imported / ORIGIN).exists() else {}
    record = origin.get("folder")
    spent = {"tokens": f"{saved.tokens or 0:,}", "FLOPs": f"{saved.flops or 0:.2e}"}
    known = " and ".join(f"{value} {name}" for name, value in spent.items() if getattr(saved, name.lower()))
    model = f"{saved.model.architecture.name} of {parameter_count(saved.model):,} parameters"
    says = [f"A {model}, at step {saved.step:,} of training by growlm{known and f', after {known}'}."]
    if record:
        says += [f"It began from `{record if name_of(record) else Path(record).name}` ({origin['model_type']})."]
    says += [growth_lines(report, verified) for report, verified in _growths(saved)]
    title = (record and name_of(record)) or saved.folder.absolute().name
    write_card(folder, f"{title}, by growlm", says, record=record, source=imported)


def _growths(saved: Saved) -> list[tuple[dict[str, Any], str]]:
    """The reports of how a model was grown until its checkpoint, and what was verified of each."""
    if saved.stage:
        paths = sorted(saved.folder.glob("growth-*.json"), key=lambda path: (len(path.name), path))
        reports = map(read_object, paths)
        return [(report, "nothing when it grew in its run") for report in reports if report["step"] <= saved.step]
    report, path = read_object(saved.folder / GROWTH_FILE), saved.folder / VERIFY_FILE
    if "operator" not in report:  # an import, which has not grown
        return []
    if not path.exists():
        return [(report, "nothing, it was written unchecked")]
    verdict = read_object(path)
    return [(report, (describe_verdict if "ok" in verdict else describe_lost)(verdict))]


# --- The tokenizer of the corpus that a run was trained on, as the files that transformers reads ---


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer adds to a Hugging Face folder.

    Attributes:
      files: copied as they are.
      written: JSON by name of file, after that.
      ids: of its special tokens, for config.json.
    """

    files: tuple[Path, ...] = ()
    written: dict[str, Any] = dataclasses.field(default_factory=dict)
    ids: dict[str, int | None] = dataclasses.field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write what is not copied."""
        for name, value in self.written.items():
            write_json(folder / name, value)


def tokenizer_files(corpus: str, fingerprints: Collection[str]) -> TokenizerFiles:
    """Those of a corpus that has one of these fingerprints; of bytes, which no file is for, the ids alone.

    Where they are gone, stderr has a line more.
    """
    try:
        return _tokenizer_files(corpus, fingerprints)
    except InputError as error:
        print(f"growlm: no tokenizer comes along: {error}", file=sys.stderr, flush=True)
        return TokenizerFiles()


def _tokenizer_files(corpus: str, fingerprints: Collection[str]) -> TokenizerFiles:
    folder = here(corpus)
    if corpus != "stdlib" and not folder.exists():
        raise InputError(f"corpus {corpus!r} is not here any more")
    if is_tokenized(folder):
        raise InputError(f"{corpus!r} is of datatrove, whose tokenizer is {tokenizer_source(folder)}")
    manifest = read_manifest(folder)
    if manifest is None:
        return TokenizerFiles(ids={"bos_token_id": None, "eos_token_id": load_tokenizer(BYTE_TOKENIZER).eos})
    if fingerprint_of(manifest) not in fingerprints:
        raise InputError(f"corpus {corpus!r} has changed since the run was trained")
    check_tokenizer(folder, manifest)
    tokenizer = manifest["tokenizer"]
    ids = {f"{name}_token_id": tokenizer[name] for name in ("bos", "eos")}
    files = tuple(folder / name for name in tokenizer["files"] if name != SETTINGS)
    return TokenizerFiles(files, _tokenizer_settings(folder, files[0].name) if files else {}, ids)


def _tokenizer_settings(folder: Path, name: str) -> dict[str, Any]:
    """Documents were trained on with EOS after them and nothing before: no BOS may come in where transformers reads."""
    settings = {"tokenizer_class": CLASSES[name], "add_bos_token": False, "clean_up_tokenization_spaces": False}
    written = {SETTINGS: read_object(folder / SETTINGS) | settings}
    tokenizer = read_object(folder / JSON) if name == JSON else {}
    if (tokenizer.get("post_processor") or {}).get("type", "ByteLevel") != "ByteLevel":  # which adds nothing
        written[JSON] = tokenizer | {"post_processor": None}
    return written


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Run the command and return the exit code."""
    if args.describe:
        print(describe(args.source))
        return 0
    if args.accept:
        print(f"taken as you changed them: {', '.join(accept(args.source)) or 'no file was changed'}")
        return 0
    if missing := [option for option in ("output", "to") if getattr(args, option) is None]:
        raise InputError(f"convert needs --{missing[0]}, --describe or --accept (see growlm convert --help)")
    if args.push and args.to != "huggingface":
        raise must_be("--to", "'huggingface' with --push", args.to)
    check_push(args)
    convert_folder(args.source, args.output, args.to, args.dtype, args.step)
    print(f"{describe(args.output)}\n\nwritten: {args.output}")
    push(args)
    return 0
