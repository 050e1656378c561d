"""Saved models as starting points: folders of `growlm train`, of a sweep's runs and of `growlm grow`; read only."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from growlm.errors import InputError
from growlm.files import check_output, whole_folder, write_json
from growlm.formats.folder import is_hugging_face, open_folder, read_params
from growlm.growth.masks import Masks
from growlm.models import DecoderConfig, Params, plain
from growlm.state import TrainState
from growlm.training.checkpoint import Checkpoints
from growlm.training.config import build_model, build_run
from growlm.training.settings import OptimizerConfig, RunConfig
from growlm.training.stages import Stage, resolve
from growlm.training.step import abstract_state, run_keys

# What a folder of `growlm grow` holds, beside the reports growth.json and verify.json.
MODEL, OPTIMIZER, GROWTH, VERIFY, CHECKPOINT = (
    "model.json",
    "optimizer.json",
    "growth.json",
    "verify.json",
    "checkpoint",
)
ORIGIN = "huggingface"  # what a checkpoint that was imported came with
STORED_AS = "dtypes.json"
INIT_FROM_FILE = "init_from.json"  # what a run began from, if not from nothing


@dataclasses.dataclass(frozen=True)
class Data:
    """What a model was trained on: a corpus as `load_corpus` takes it, its fingerprint, and the run's batches.

    document_mask: as in `RunConfig`.
    """

    corpus: str
    fingerprint: str
    seed: int
    batch: int
    length: int
    document_mask: bool = False


@dataclasses.dataclass(frozen=True)
class Saved:
    """A saved training state, found and not read yet. `key` is the one in the state, from which growth draws.

    masks: the ramp of its growth, while it lasts, and how far its masks are open. tokens, flops: all that it has cost,
    with what it began from; None where that is not known.
    """

    folder: Path
    checkpoints: Path
    step: int
    model: DecoderConfig
    optimizer: OptimizerConfig
    key: jax.Array
    data: Data | None
    masks: tuple[Masks, np.ndarray] | None = None
    tokens: int | None = None
    flops: float | None = None


class _Stored(Checkpoints):
    """Checkpoints that are looked at only: a run that trains at this moment is not disturbed."""

    def __init__(self, folder: Path):
        options = ocp.CheckpointManagerOptions(create=False)  # read_only=True warns three times
        handler = ocp.StandardCheckpointHandler()
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handler)


def find_saved(folder: Path, step: int | None = None) -> Saved:
    """What a folder holds, for `read_state`; nothing large is read.

    Args:
      folder: a run folder of `growlm train`, one of a sweep's run folders, or a folder that `growlm grow` wrote.
      step: of a run; its last checkpoint unless it is given.

    Raises:
      InputError: a folder of another kind, a step that was not kept, a checkpoint that is not what it should be.
    """
    if not folder.is_dir():
        raise InputError(f"source {folder} is no folder: allowed is one of growlm train, of a sweep's run or of grow")
    if (folder / MODEL).exists() and (folder / CHECKPOINT).is_dir():
        return _find_grown(folder, step)
    config = _read_json(folder / "config.json") if (folder / "config.json").exists() else None
    if isinstance(config, dict) and isinstance(config.get("runs"), dict):
        runs = ", ".join(str(folder / name) for name in config["runs"])
        raise InputError(f"source {folder} is a sweep: allowed is one of its runs, {runs}")
    if not isinstance(config, dict) or "stages" not in config:
        raise InputError(
            f"source {folder} holds no model: allowed is a folder of growlm train, of a sweep's run or of grow, or a "
            "Hugging Face folder"
        )
    return _find_run(folder, build_run(config), step)


def read_state(saved: Saved, mesh: Mesh | None = None) -> TrainState:
    """The training state, on a mesh or this process's first device. Raises InputError where it is not the model's."""
    with contextlib.closing(_Stored(saved.checkpoints)) as stored:
        return stored.restore(saved.step, abstract_state(saved.model, saved.optimizer, mesh))


def check_open(saved: Saved) -> None:
    """Raises InputError where masks of a growth are not open yet: the weights alone are not the trained model."""
    if saved.masks is None:
        return
    _, done = saved.masks
    raise InputError(
        f"source {saved.folder}, step {saved.step}: masks of its growth are open to {100 * done.min():.0f} %; allowed "
        "is a checkpoint from after its mask schedule, until which the run can be trained on, or a growth with "
        "mask_tokens=0"
    )


def _find_grown(folder: Path, step: int | None) -> Saved:
    growth = _read_json(folder / GROWTH)
    try:
        model, optimizer = build_model(_read_json(folder / MODEL)), OptimizerConfig(**_read_json(folder / OPTIMIZER))
        data = growth["data"] and Data(**growth["data"])
        key = jax.random.wrap_key_data(jax.numpy.asarray(growth["key"], "uint32"))
        said = growth.get(Masks.name) or growth.get("ramp")  # its name until 0.3
        ramp = Masks(**said) if said else None
        spent = _spent_on_growth(growth)
    except (TypeError, KeyError, InputError) as error:
        raise InputError(
            f"source {folder} is no folder of this growlm's grow: {' '.join(str(error).split())}"
        ) from None
    steps = _steps(folder / CHECKPOINT)
    masks = (ramp, ramp.progress(0)) if ramp else None
    chosen = _chosen(folder, steps, step)
    return Saved(folder, folder / CHECKPOINT, chosen, model, optimizer, key, data, masks, **spent)


def _spent_on_growth(growth: dict[str, Any]) -> dict[str, Any]:
    """What the source had cost, and as in a run the FLOPs of learning the maps, whose tokens are none of training."""
    tokens, flops = (growth.get("grown_from", {}).get(name) for name in ("tokens", "flops"))
    learned = growth.get("learning", {}).get("flops", 0.0)
    return {"tokens": tokens, "flops": None if flops is None else flops + learned}


def _find_run(folder: Path, run: RunConfig, step: int | None) -> Saved:
    """The stage of a run that a step belongs to, and its checkpoint."""
    beside = folder.absolute().parent / "stages"  # where the runs of a sweep share their stages
    found = [(stage, store) for store in (folder / "checkpoints", beside) for stage in _stages(run, store)]
    if not found and any((folder / "checkpoints").glob("*/stage.json")):
        raise InputError(f"source {folder} has other stages than its config leads to: allowed is a run of this growlm")
    points: dict[int, tuple[Stage, Path]] = {}
    for stage, store in found:
        home = store / stage.address / "checkpoints"
        points |= {n: (stage, home) for n in _steps(home) if n <= stage.last_step}
    step = _chosen(folder, sorted(points), step)
    stage, home = points[step]
    batches = run.seed, stage.config.batch, stage.config.length
    data = Data(run.corpus, stage.fingerprint, *batches, run.document_mask)
    done = stage.progress_at(step)
    masks = None if done is None else (stage.growth.masks, done)
    settings = stage.config.model, stage.config.optimizer, run_keys(run.seed)[1]
    return Saved(folder, home, step, *settings, data, masks, **_spent(folder, stage, step))


def _spent(folder: Path, stage: Stage, step: int) -> dict[str, Any]:
    """Tokens and FLOPs until a step, with those of what the run began from."""
    own = {"tokens": stage.tokens_at(step), "flops": stage.cost_at(step).flops}
    if stage.run.stages[0].init_from is None:
        return own
    before = _read_json(folder / INIT_FROM_FILE) if (folder / INIT_FROM_FILE).exists() else {}
    return {name: None if before.get(name) is None else before[name] + value for name, value in own.items()}


def _stages(run: RunConfig, store: Path) -> list[Stage]:
    """The run's stages, if this store has any: the corpus that their addresses need is named in the store."""
    fingerprints = {_read_json(path)["corpus"] for path in sorted(store.glob("*/stage.json"))}
    found = (resolve(run, fingerprint) for fingerprint in sorted(fingerprints))
    return next((stages for stages in found if (store / stages[0].address).is_dir()), [])


def _steps(checkpoints: Path) -> list[int]:
    if not checkpoints.is_dir():
        return []
    with contextlib.closing(_Stored(checkpoints)) as stored:
        return stored.steps()


def _chosen(folder: Path, steps: list[int], step: int | None) -> int:
    """The step asked for, or the last."""
    if not steps:
        raise InputError(f"source {folder} has no checkpoint yet: allowed is a run that has saved one")
    if step is not None and step not in steps:
        raise InputError(f"source {folder} has no checkpoint of step {step}: allowed are {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def keep_origin(folder: Path, settings: dict[str, Any], stored: dict[str, str], carried: Sequence[Path]) -> None:
    """Keeps what `HuggingFaceFolder.origin` says of an imported checkpoint."""
    with whole_folder(folder / ORIGIN) as part:
        write_json(part / "config.json", settings)
        write_json(part / STORED_AS, stored)
        for path in carried:
            shutil.copyfile(path, part / path.name)


def carry_origin(source: Path, folder: Path) -> None:
    """Copies what an imported checkpoint came with, if the source was imported and it is not there yet."""
    if (source / ORIGIN).is_dir() and not (folder / ORIGIN).exists():
        with whole_folder(folder / ORIGIN) as part:
            shutil.copytree(source / ORIGIN, part, dirs_exist_ok=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{path} is not JSON: allowed is a file as growlm wrote it") from None


def save_grown(
    output: Path,
    model: DecoderConfig,
    optimizer: OptimizerConfig,
    state: TrainState,
    growth: dict[str, Any],
    verdict: dict[str, Any] | None,
    data: Data | None,
    beside: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Writes a grown state as a folder that `find_saved` finds, whole or not at all.

    Args:
      output: a new or empty folder.
      model, optimizer: whose state it is.
      state: everything of it is kept.
      growth, verdict: the reports, as growth.json and verify.json.
      data: what the source was trained on.
      beside: writes what else there should be into the folder.

    Raises:
      InputError: there is something, or another process is writing it.
    """
    check_output(output)
    key = jax.random.key_data(state.key).tolist()
    with whole_folder(output) as folder:
        write_json(folder / MODEL, plain(model))
        write_json(folder / OPTIMIZER, dataclasses.asdict(optimizer))
        write_json(folder / GROWTH, growth | {"data": data and dataclasses.asdict(data), "key": key})
        if verdict:
            write_json(folder / VERIFY, verdict)
        with contextlib.closing(Checkpoints(folder / CHECKPOINT, max_to_keep=1)) as checkpoints:
            checkpoints.save(state)
        beside(folder)


def read_config(folder: Path | str) -> DecoderConfig:
    """The shape of a saved model, as for a stage with `init_from`; no weight is read. Else as `read_model`."""
    folder = Path(folder)
    if is_hugging_face(folder):
        return open_folder(folder).model
    return find_saved(folder).model


def read_model(folder: Path | str) -> tuple[DecoderConfig, Params]:
    """The shape and the parameters of a saved model.

    Args:
      folder: a Hugging Face checkpoint in safetensors, of a model_type in `growlm.formats.families.families()`, or a
        folder of `growlm train` or `growlm grow` (of which the last checkpoint is read).

    Returns:
      (config, params): params as `growlm.init` gives them, float32, NumPy arrays or JAX arrays; they hold the stored
      values exactly.

    Raises:
      InputError: a folder of another kind, another family, weights that are damaged, missing or not what config.json
        says, a run whose masks are not open yet.
    """
    folder = Path(folder)
    if is_hugging_face(folder):
        source = open_folder(folder)
        return source.model, read_params(source)
    saved = find_saved(folder)
    check_open(saved)
    return saved.model, read_state(saved).params
