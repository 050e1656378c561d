"""Saved models as starting points: folders of `growlm train`, of a sweep's runs and of `growlm grow`; read only."""

import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from growlm.buckets import STATES, absolute, here, is_folder
from growlm.checked import NUMBER, DamagedError, check_files, check_shape, write_checksums
from growlm.data.mixture import Fingerprint
from growlm.errors import InputError, must_be
from growlm.files import check_output, inside, read_json, read_record, whole_folder, write_json
from growlm.formats.card import CARD
from growlm.formats.folder import CARRIED, CONFIG, HuggingFaceFolder, is_hugging_face, open_folder, read_params
from growlm.growth.masks import Masks
from growlm.hub import local_folder, recorded
from growlm.models import DecoderConfig, Params, plain
from growlm.state import TrainState
from growlm.training.checkpoint import Checkpoints, restore_checkpoint, stored_steps
from growlm.training.config import build, build_model, build_run
from growlm.training.decisions import read_decisions
from growlm.training.host_memory import check_memory
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.optimizer import OptimizerConfig
from growlm.training.settings import RunConfig
from growlm.training.stages import Stage, StageText, begin_stage
from growlm.training.step import abstract_state, run_keys
from growlm.training.systems import written_out

# What a folder of `growlm grow` holds.
MODEL_FILE, OPTIMIZER_FILE, CHECKPOINT = "model.json", "optimizer.json", "checkpoint"
GROWTH_FILE, VERIFY_FILE = "growth.json", "verify.json"
# Within a folder of ours, what an imported checkpoint came with: config, tokenizer, card, the dtypes of its tensors.
IMPORTED, STORED_DTYPES = "huggingface", "dtypes.json"
ORIGIN = "origin.json"  # what records say of the folder that was imported; beside it its card
INIT_FROM_FILE = "init_from.json"  # what a run began from, if not from nothing
REMOVAL_SECONDS = 1.0  # in which a checkpoint vanishes whose files have begun to
TRIES = 5  # to read a checkpoint before a run that trains removes it
FOLDERS = "a folder of growlm train, of a sweep's run or of growlm grow"


Args, Value = ParamSpec("Args"), TypeVar("Value")


class GoneError(InputError):
    """A checkpoint was removed while it was being read."""


def of_the_newest(read: Callable[Args, Value]) -> Callable[Args, Value]:
    """A decorator of what finds a checkpoint and reads it: done again where a run that trains removes that one."""

    @functools.wraps(read)
    def again(*args: Args.args, **kwargs: Args.kwargs) -> Value:
        for _ in range(TRIES - 1):
            with contextlib.suppress(GoneError):
                return read(*args, **kwargs)
        return read(*args, **kwargs)

    return again


@dataclasses.dataclass(frozen=True)
class Data:
    """What a model was trained on: a corpus as `read_sources` takes it, its fingerprint, and the run's batches.

    document_mask: as in `RunConfig`.
    """

    corpus: str | dict[str, Any]
    fingerprint: Fingerprint
    seed: int
    batch: int
    length: int
    document_mask: bool = False


@dataclasses.dataclass(frozen=True)
class Saved:
    """A saved training state, found and not read yet.

    Attributes:
      folder: the folder that was asked for.
      checkpoints, step: where its checkpoint lies.
      model, optimizer: whose state it is.
      key: the one in the state, from which growth draws.
      data: what it was trained on, where that is known.
      masks: the mask schedule of its growth while it lasts, and how far its masks are open.
      tokens, flops: all that was spent, with what the run began from; None where that is not known.
      stage: of a run, the one that the checkpoint is of.
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
    stage: Stage | None = None


def find_saved(folder: Path, step: int | None = None) -> Saved:
    """What a folder holds, for `read_state`; nothing large is read.

    Args:
      folder: a run folder of `growlm train`, one of a sweep's run folders, or a folder that `growlm grow` wrote.
      step: of a run; its last checkpoint unless it is given.

    Raises:
      InputError: a folder of another kind, a step that was not kept, a checkpoint that is not what it should be.
    """
    if not is_folder(folder):
        raise InputError(f"source must be {FOLDERS}, got {folder}, which is no folder")
    if (folder / MODEL_FILE).exists() and (folder / CHECKPOINT).is_dir():
        return _find_grown(here(folder), step)
    config = read_json(folder / CONFIG, CONFIG) if (folder / CONFIG).exists() else None
    if isinstance(config, dict) and isinstance(config.get("runs"), dict):
        runs = ", ".join(str(folder / name) for name in config["runs"])
        raise InputError(f"source {folder} is a sweep, and must be one of its runs: {runs}")
    if not isinstance(config, dict) or "stages" not in config:
        raise InputError(f"source must be {FOLDERS}, or a Hugging Face folder, got {folder}, which holds no model")
    return _find_run(folder, written_out(build_run(config)), step)


def read_state(saved: Saved, mesh: Mesh | None = None) -> TrainState:
    """The training state, on a mesh or this process's first device.

    Raises InputError where it is not the model's, or no device can hold that.
    """
    check_memory([saved.model], mesh or make_mesh(MeshConfig(), jax.local_devices()[:1]), trained=False)
    return read_stored(saved.checkpoints, saved.step, abstract_state(saved.model, saved.optimizer, mesh))


def read_stored(checkpoints: Path, step: int, like: TrainState) -> TrainState:
    """The state of a checkpoint, see `restore_checkpoint`, of a stage that may be training.

    Raises GoneError where that has removed it meanwhile.
    """
    try:
        return restore_checkpoint(checkpoints, step, like)
    except Exception as error:
        if isinstance(error, RecursionError):  # of orbax's own reader of JSON
            raise DamagedError(f"checkpoint {checkpoints}/{step} cannot be read: its metadata is damaged") from None
        until = time.monotonic() + REMOVAL_SECONDS
        while step in stored_steps(checkpoints):
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        reason = "the run that trains there has removed it for a newer one"
        raise GoneError(f"step {step} of {checkpoints} is gone: {reason}") from None


def check_open(saved: Saved) -> None:
    """Raises InputError where masks of a growth are not open yet: the weights alone are not the trained model."""
    if saved.masks is None:
        return
    _, progress = saved.masks
    raise InputError(
        f"masks of the growth must be open, got {100 * progress.min():.0f} % at step {saved.step} of {saved.folder}: "
        "train the run on until its mask schedule ends, or take a later checkpoint"
    )


def _find_grown(folder: Path, step: int | None) -> Saved:
    step = _chosen(folder, stored_steps(folder / CHECKPOINT), step)
    check_files(folder, MODEL_FILE, OPTIMIZER_FILE, GROWTH_FILE)
    try:
        growth = read_json(folder / GROWTH_FILE, GROWTH_FILE)
        stored_masks = growth.get(Masks.name) or growth.get("ramp")  # its name until 0.3
        masks = Masks(**stored_masks) if stored_masks else None
        spent = {name: growth.get("grown_from", {}).get(name) for name in ("tokens", "flops")}
        if spent["flops"] is not None:  # as in a run, learning the maps costs FLOPs and no tokens of training
            spent["flops"] += growth.get("learning", {}).get("flops", 0.0)
        return Saved(
            folder=folder,
            checkpoints=folder / CHECKPOINT,
            step=step,
            model=build_model(read_json(folder / MODEL_FILE, MODEL_FILE)),
            optimizer=build(OptimizerConfig, read_json(folder / OPTIMIZER_FILE, OPTIMIZER_FILE), "optimizer"),
            key=jax.random.wrap_key_data(jax.numpy.asarray(growth["key"], "uint32")),
            data=Data(**growth["data"]) if growth["data"] else None,
            masks=(masks, masks.progress(0)) if masks else None,
            **spent,
        )
    except (AttributeError, TypeError, KeyError, OverflowError, ValueError) as error:
        reason = f"{GROWTH_FILE} has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"source {folder} is no folder of this version's growlm grow: {reason}") from None


def _find_run(folder: Path, run: RunConfig, step: int | None) -> Saved:
    """The stage of a run that a step belongs to, and its checkpoint."""
    shared = absolute(folder).parent / "stages"  # where the runs of a sweep share their stages
    found = [(stage, store) for store in (folder / "checkpoints", shared) for stage in _stages(run, store)]
    if not found and any((folder / "checkpoints").glob("*/stage.json")):
        raise InputError(
            f"{folder / CONFIG} leads to none of the stages in {folder / 'checkpoints'}: "
            "was the run made by another version?"
        )
    at: dict[int, tuple[Stage, Path]] = {}
    for stage, store in found:
        checkpoints = store / stage.stage_hash / "checkpoints"
        at |= {n: (stage, checkpoints) for n in stored_steps(checkpoints) if n <= stage.last_step}
    step = _chosen(folder, sorted(at), step)
    stage, checkpoints = at[step]
    progress = stage.progress_at(step)
    return Saved(
        folder=here(folder, STATES),
        checkpoints=checkpoints,
        step=step,
        model=stage.config.model,
        optimizer=stage.config.optimizer,
        key=run_keys(run.seed)[1],
        data=Data(
            corpus=stage.corpus,
            fingerprint=stage.text.trained,
            seed=run.seed,
            batch=stage.config.batch,
            length=stage.config.length,
            document_mask=run.document_mask,
        ),
        masks=None if progress is None else (stage.growth.masks, progress),
        stage=stage,
        **_spent(folder, stage, step),
    )


def _spent(folder: Path, stage: Stage, step: int) -> dict[str, Any]:
    """Tokens and FLOPs until a step, with those of what the run began from."""
    spent = {"tokens": stage.tokens_at(step), "flops": stage.cost_at(step).flops}
    if stage.run.stages[0].init_from is None:
        return spent
    path = folder / INIT_FROM_FILE
    before = read_json(path, INIT_FROM_FILE) if path.exists() else {}
    check_shape(before, dict.fromkeys(spent, NUMBER), path)
    return {name: None if before.get(name) is None else before[name] + value for name, value in spent.items()}


def _stages(run: RunConfig, store: Path) -> list[Stage]:
    """The run's first stages, as many as are in this store: the text that their hashes need is named there."""
    stored = {path: read_record(path, "stage", "corpus") for path in sorted(store.glob("*/stage.json"))}
    for path, one in stored.items():
        check_shape(one, {"judged_on": dict}, path)
    texts = [StageText(one["corpus"], (one.get("judged_on") or {}).get("corpus")) for one in stored.values()]
    stages, decisions = [], read_decisions(store)
    for config in run.stages:
        of_any = (begin_stage(config, run, text, stages[-1] if stages else None, decisions) for text in texts)
        if (found := next((one for one in of_any if (store / one.stage_hash).is_dir()), None)) is None:
            break
        stages.append(found)
    return stages


def _chosen(folder: Path, steps: list[int], step: int | None) -> int:
    """The step asked for, or the last."""
    if not steps:
        raise InputError(f"source {folder} has no checkpoint yet")
    if step is not None and step not in steps:
        raise must_be(f"step of {folder}", f"one of its checkpoints, {', '.join(map(str, steps))}", step)
    return steps[-1] if step is None else step


def save_imported(folder: Path, source: HuggingFaceFolder) -> None:
    """Save in a folder of ours what else a Hugging Face checkpoint has, so that it can be exported again."""
    with whole_folder(folder / IMPORTED) as part:
        write_json(part / CONFIG, source.settings)
        write_json(part / STORED_DTYPES, {name: tensor.dtype.name for name, tensor in source.tensors.items()})
        write_json(part / ORIGIN, {"folder": recorded(source.folder), "model_type": source.family.model_type})
        for path in source.carried:
            shutil.copyfile(path, part / path.name)
        if (source.folder / CARD).is_file():
            shutil.copyfile(inside(source.folder, CARD), part / CARD)
        write_checksums(part)


def copy_imported(source: Path, folder: Path) -> None:
    """Copy config.json, tokenizer and dtypes of the original Hugging Face checkpoint, unless already present."""
    if (source / IMPORTED).is_dir() and not (folder / IMPORTED).exists():
        check_files(source / IMPORTED)
        with whole_folder(folder / IMPORTED) as part:
            imported = here(source / IMPORTED)  # what is ours of it, and no link to elsewhere
            for name in (CONFIG, STORED_DTYPES, ORIGIN, CARD, *CARRIED):
                if (imported / name).exists():
                    shutil.copyfile(inside(imported, name), part / name)
            write_checksums(part)


def save_grown(
    output: Path,
    model: DecoderConfig,
    optimizer: OptimizerConfig,
    state: TrainState,
    *,
    growth: dict[str, Any],
    verdict: dict[str, Any] | None = None,
    data: Data | None = None,
    beside: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a grown state as a folder that `find_saved` finds, whole or not at all.

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
        write_json(folder / MODEL_FILE, plain(model))
        write_json(folder / OPTIMIZER_FILE, dataclasses.asdict(optimizer))
        write_json(folder / GROWTH_FILE, growth | {"data": data and dataclasses.asdict(data), "key": key})
        if verdict:
            write_json(folder / VERIFY_FILE, verdict)
        with contextlib.closing(Checkpoints(folder / CHECKPOINT, max_to_keep=1)) as checkpoints:
            checkpoints.save(state)
        beside(folder)
        write_checksums(folder)


def read_config(folder: Path | str) -> DecoderConfig:
    """The shape of a saved model, as for a stage with `init_from`; no weight is read. Else as `read_model`."""
    folder = local_folder(folder)
    return open_folder(folder).model if is_hugging_face(folder) else find_saved(folder).model


@of_the_newest
def read_model(folder: Path | str) -> tuple[DecoderConfig, Params]:
    """The shape and the parameters of a saved model.

    Args:
      folder: a Hugging Face checkpoint in safetensors, of a model_type in `growlm.formats.layout.families()`, also as
        hf:ORG/NAME, or a folder of `growlm train` or `growlm grow` (of which the last checkpoint is read).

    Returns:
      (config, params): params as `growlm.init` gives them, float32, NumPy arrays or JAX arrays; they hold the stored
      values exactly.

    Raises:
      InputError: a folder of another kind, another family, weights that are damaged, missing or not what config.json
        says, a run whose masks are not open yet.
    """
    folder = local_folder(folder)
    if is_hugging_face(folder):
        source = open_folder(folder)
        return source.model, read_params(source)
    saved = find_saved(folder)
    check_open(saved)
    return saved.model, read_state(saved).params
