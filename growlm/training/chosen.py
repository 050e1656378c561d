"""The windows that a stage is trained on, where they are chosen: scored before its first batch, kept beside it."""

import dataclasses
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from growlm.checked import EACH, check_regular, check_shape
from growlm.data.batches import next_windows, read_windows
from growlm.errors import InputError, in_one_line
from growlm.files import read_json, write_sealed, write_whole
from growlm.models import Params
from growlm.training.choice import window_scores
from growlm.training.init_from import Sources, read_named
from growlm.training.mesh import place_batch, replicated, share_of_batch
from growlm.training.processes import broadcast_json, is_first
from growlm.training.stages import Cost, Stage
from growlm.training.texts import Text

# The report of a choice, which is written last, and the numbers of the windows of all sources, one after the other.
CHOICE_FILE, WINDOWS_FILE = "choice.json", "windows.npy"
REPORT = {"chosen!": {EACH: int}, "bytes!": int, "sha256!": str}  # what is read of it
Chosen = Mapping[str, np.ndarray]  # the numbers of windows, rising, by the fingerprint of a corpus


def chosen_text(
    stage: Stage,
    text: Text,
    sources: Sources,
    *,
    mesh: Mesh,
    store: Path,
    folder: Path,
    say: Callable[[str], None],
) -> Text:
    """The text of a stage with the windows that it is trained on, chosen now or read; as it is without a choice.

    Of every source the windows that come next in its order are scored, as many as it takes for the share that is kept
    to have the stage's tokens, and the highest are kept. Of several processes the first one's windows are those of all.

    Args:
      stage, text, mesh: what is trained, on what, and the devices that share the work.
      sources, store: where its scorer is read from, as in `read_teacher`.
      folder: of the stage, where the first process keeps the windows.
      say: takes a line for people.

    Raises:
      InputError: the scorer is gone, or another is there; what is kept is damaged.
    """
    if stage.config.choice is None:
        return text
    if (found := _broadcast(_read(folder) if is_first() else None)) is None:
        began = time.perf_counter()
        scorer = read_named(stage, "choice.scorer", sources, mesh, store)
        found = {corpus: list(map(int, windows)) for corpus, windows in _choose(stage, text, scorer, mesh).items()}
        if is_first():
            _write(folder, stage, found, time.perf_counter() - began)
        found = _broadcast(found)
        counts = (sum(of_all) for of_all in zip(*stage.windows.values(), strict=True))
        say("chose {:,} windows of {:,}".format(*counts))
    chosen = {corpus: np.array(windows, np.int64) for corpus, windows in found.items()}
    return text._replace(trained=dataclasses.replace(text.trained, chosen=chosen))


def _broadcast(found: Any) -> Any:
    """What the first process has found. Raises InputError in all where it is an error."""
    found = broadcast_json(str(found) if isinstance(found, InputError) else found)
    if isinstance(found, str):
        raise InputError(found)
    return found


def _choose(stage: Stage, text: Text, scorer: Params, mesh: Mesh) -> Chosen:
    chosen, before = {}, stage.given_at(stage.first_step)
    for corpus in text.trained.corpora.values():
        count, scored = stage.windows[corpus.fingerprint]
        tokens, length = corpus.train, stage.config.length
        start = before.get(corpus.fingerprint, 0)
        pool = next_windows(tokens, seed=stage.run.seed, length=length, start=start, count=scored)
        scores = score_windows(stage, tokens, pool, scorer, mesh)
        best = np.argsort(-scores, kind="stable")[:count]  # of equal ones those that come first
        chosen[corpus.fingerprint] = np.sort(pool[best])
    return chosen


def score_windows(stage: Stage, tokens: Any, pool: np.ndarray, scorer: Params, mesh: Mesh) -> np.ndarray:
    """The scores of windows by their numbers, float32[pool], in batches of as many as the stage has in memory."""
    run, config, choice = stage.run, stage.config, stage.config.choice
    document_end = stage.text.eos if run.document_mask else None
    score = partial(window_scores, stage.scorer_model, choice.top_k, run.dtype, document_end)
    with jax.set_mesh(mesh):
        program = jax.jit(score, out_shardings=replicated(mesh))
        scores = [np.asarray(program(scorer, rows_BS)) for rows_BS in _batches(config, tokens, pool, mesh)]
    return np.concatenate(scores)[: len(pool)]


def _batches(config: Any, tokens: Any, pool: np.ndarray, mesh: Mesh) -> Iterator[jax.Array]:
    """The windows in batches, the last filled up with the last window; each process reads its rows alone."""
    (share, shares), batch = share_of_batch(mesh), config.batch // config.microbatches
    for start in range(0, len(pool), batch):
        rows = np.minimum(np.arange(start, start + batch), len(pool) - 1).reshape(shares, -1)[share]
        yield place_batch(mesh, read_windows(tokens, config.length, pool[rows]))


def _write(folder: Path, stage: Stage, chosen: Mapping[str, list[int]], seconds: float) -> None:
    """Keep the windows; the report after them, so that it is there only where they are."""
    content = io.BytesIO()
    np.save(content, np.concatenate([np.array(windows, np.int64) for windows in chosen.values()]))
    write_whole(folder / WINDOWS_FILE, content.getvalue())
    choice, spent = stage.config.choice, stage.scored(Cost())
    report = {
        "step": stage.first_step,
        "chosen": {corpus: len(windows) for corpus, windows in chosen.items()},
        "scored": {corpus: scored for corpus, (_, scored) in stage.windows.items()},
        "top_k": choice.top_k,
        "flops": spent.flops,
        "seconds": seconds,
    }
    write_sealed(folder / CHOICE_FILE, report | _stamp(content.getvalue()))


def _read(folder: Path) -> dict[str, list[int]] | InputError | None:
    """The windows that were chosen, by corpus; None where they are not yet, an error where they are damaged."""
    if not (folder / CHOICE_FILE).exists():
        return None
    path = folder / WINDOWS_FILE
    try:
        report = read_json(folder / CHOICE_FILE, "choice")
        check_shape(report, REPORT, folder / CHOICE_FILE)
        check_regular(path, WINDOWS_FILE)
        size = path.stat().st_size if path.exists() else 0
        content = path.read_bytes() if size == report["bytes"] else b""
        if _stamp(content) != {name: report[name] for name in _stamp(b"")}:
            return InputError(f"{path} must be as it was written, of {report['bytes']} bytes, got {size}")
        windows, counts = np.load(io.BytesIO(content)), [*report["chosen"].values()]
        if windows.dtype != np.int64 or windows.shape != (sum(counts),) or min(counts, default=0) < 0:
            return InputError(f"{path} must have {sum(counts)} numbers of windows, got {windows.shape} {windows.dtype}")
    except InputError as error:
        return error
    except ValueError as error:
        return InputError(f"{path} must be numbers of windows, got {in_one_line(error)}")
    parts = np.split(windows, np.cumsum(counts)[:-1])
    return {corpus: part.tolist() for corpus, part in zip(report["chosen"], parts, strict=True)}


def _stamp(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
