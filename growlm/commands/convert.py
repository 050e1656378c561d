"""`growlm convert`: a Hugging Face folder to one of growlm's, and back; values and dtypes stay as they are.

What a folder of ours holds of an import lies in its `huggingface/`: config.json, the tokenizer, and the dtypes in which
the weights were stored, so that they can go back as they came. What was not imported gets its corpus's tokenizer.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from growlm.commands.options import STEP, Keys, flag, one
from growlm.errors import InputError, unknown
from growlm.files import check_output, check_space
from growlm.formats.export import LENGTH, progress_bar, write_model
from growlm.formats.families import settings_of
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
from growlm.formats.safetensors_files import inside, read_json
from growlm.formats.tokenizer_files import TokenizerFiles, tokenizer_files
from growlm.growth.plan import initial_provenance
from growlm.models import DecoderConfig, Params
from growlm.state import TrainState
from growlm.training.optimizer import make_optimizer
from growlm.training.saved import (
    MODEL,
    ORIGIN,
    STORED_AS,
    Saved,
    check_open,
    find_saved,
    keep_origin,
    read_state,
    save_grown,
)
from growlm.training.settings import OptimizerConfig
from growlm.training.step import abstract_state, run_keys

OPTIONS = {
    "--source": one(
        "DIR", "checkpoint to convert: a Hugging Face folder, a run's, or one of growlm grow", Path, required=True
    ),
    "--output": one("DIR", "new folder", Path),
    "--to": one("FORMAT", "huggingface or growlm"),
    "--dtype": one("NAME", "dtype of exported weights (default: as imported, else float32)"),
    "--step": STEP,
    "--describe": flag("print what the source is, and write nothing"),
}
FORMATS = ("huggingface", "growlm")


def convert_folder(source: Path, output: Path, to: str, dtype: str | None = None, step: int | None = None) -> None:
    """Writes a folder of the other kind.

    Args:
      source: a Hugging Face folder, or one of `growlm train`, `growlm grow` or this.
      output: a new or empty folder.
      to: "huggingface" or "growlm".
      dtype: of the weights that Hugging Face gets; as they were stored by default, else float32.
      step: of a run; its last by default.

    Raises:
      InputError: a source that is damaged, unsupported or of that kind already, an output that is there, no room.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    check_output(output)
    if to == "huggingface":
        if is_hugging_face(source):
            raise InputError(f"source {source} is a Hugging Face folder already: allowed is --to=growlm")
        _export(find_saved(source, step), output, dtype)
        return
    if _is_ours(source):
        raise InputError(f"source {source} is a growlm folder already: allowed is --to=huggingface")
    if dtype is not None or step is not None:
        raise InputError("--dtype and --step are of --to=huggingface: allowed are neither")
    _import(open_folder(source), output)


def describe(folder: Path | str) -> str:
    """What a folder holds, as text: one of Hugging Face, of `growlm train` or of `growlm grow`. No weight is read.

    Raises InputError as `read_model` does.
    """
    folder = Path(folder)
    if is_hugging_face(folder):
        return describe_folder(open_folder(folder))
    saved = find_saved(folder)
    origin = saved.folder / ORIGIN / CONFIG
    came = f"imported, {read_json(origin)['model_type']}" if origin.exists() else "not imported"
    return describe_model(saved.model, f"growlm, step {saved.step:,}", {"origin": came})


def _is_ours(folder: Path) -> bool:
    """Whether a folder is one of growlm's, whatever state it is in."""
    config = folder / CONFIG
    return (folder / MODEL).exists() or (config.is_file() and not {"stages", "runs"}.isdisjoint(read_json(config)))


def _import(source: HuggingFaceFolder, output: Path) -> None:
    """As a training state at step 0, whose optimizer has seen nothing."""
    optimizer = OptimizerConfig()
    abstract = abstract_state(source.model, optimizer)
    check_space(output, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract.arrays)))
    with progress_bar("reading", source.nbytes) as bar:
        params = jax.tree.map(jax.numpy.asarray, read_params(source, bar.update))
    state = _first_state(source.model, optimizer, params)
    came = {"imported_from": str(source.folder.absolute()), "family": source.family.model_type}
    save_grown(output, source.model, optimizer, state, came, None, None, lambda part: keep_origin(part, *source.origin))


def _first_state(model: DecoderConfig, optimizer: OptimizerConfig, params: Params) -> TrainState:
    zero, opt_state = np.int64(0), make_optimizer(optimizer, model).init(params)
    return TrainState(params, opt_state, zero, zero, zero, run_keys(0)[1], initial_provenance(model))


def _export(saved: Saved, output: Path, dtype: str | None) -> None:
    origin, how = saved.folder / ORIGIN, _how(saved, dtype)
    check_open(saved)
    settings_of(saved.model, how["settings"])  # refused before anything is read
    carried = [inside(origin, name) for name in CARRIED if (origin / name).exists()]
    its_own = any(path.name in TOKENIZERS for path in carried)
    found = TokenizerFiles()
    if saved.data and not its_own:
        found = tokenizer_files(saved.data.corpus, saved.data.fingerprint)
    how["settings"] |= found.ids
    carried += found.files
    write_model(output, saved.model, read_state(saved).params, carried=carried, beside=found.write, **how)


def _how(saved: Saved, dtype: str | None) -> dict[str, Any]:
    """The settings and the dtypes with which a model is written: those with which it came, where it was imported."""
    origin = saved.folder / ORIGIN
    if not origin.is_dir():
        length = saved.data.length if saved.data else LENGTH
        return {"dtype": dtype or "float32", "settings": {"max_position_embeddings": length}}
    settings, stored = read_json(inside(origin, CONFIG)), read_json(inside(origin, STORED_AS))
    if dtype:
        return {"dtype": dtype, "settings": settings | {"dtype" if "dtype" in settings else "torch_dtype": dtype}}
    (most, _), *_ = Counter(stored.values()).most_common(1)  # of layers that came by growth
    return {"dtype": most, "dtypes": stored, "settings": settings}


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code."""
    if args.describe:
        print(describe(args.source))
        return 0
    if missing := [option for option in ("output", "to") if getattr(args, option) is None]:
        raise InputError(f"convert needs --{missing[0]}, or --describe (see growlm convert --help)")
    convert_folder(args.source, args.output, args.to, args.dtype, args.step)
    print(f"{describe(args.output)}\n\nwritten: {args.output}")
    return 0
