"""`growlm probe`: forks a run where a stage ends, tries growths on it and says which trains best."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from growlm.commands import options
from growlm.commands.options import CONFIG, CONFIG_KEYS, STEP, Keys, one, place
from growlm.errors import InputError, must_be
from growlm.training.settings import PROBE, RunConfig

OPTIONS = {
    "--config": CONFIG,
    "--workdir": one("DIR", "folder that gets probe.json (default: the checkpoint's)", place),
    "--checkpoint": one("RUN", "folder of the run to fork (default: WORKDIR)", place),
    "--step": STEP | {"help": "fork at this step (default: where the stage before the config's last one ends)"},
}
KEYS = CONFIG_KEYS
PROBE_FILE = "probe.json"


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Run the command; returns the exit code."""
    options.announce_loading()
    from growlm.files import write_sealed
    from growlm.training.config import build_run, load_config
    from growlm.training.metrics import reproduction
    from growlm.training.peers import join_job
    from growlm.training.processes import is_first
    from growlm.training.programs import cached_on_disk

    join_job()
    checkpoint, workdir = args.checkpoint or args.workdir, args.workdir or args.checkpoint
    if checkpoint is None:
        raise InputError("probe needs --checkpoint=RUN or --workdir=DIR (see growlm probe --help)")
    if (workdir / PROBE_FILE).exists():
        raise InputError(f"{workdir / PROBE_FILE} must not be there yet: name another folder by --workdir=DIR")
    config = build_run(load_config(args.config, keys["--config"]))
    plan = plan_probe(config, checkpoint, args.step)
    with cached_on_disk():
        found = run_probe(*plan)
    if is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        write_sealed(workdir / PROBE_FILE, found | reproduction(options.command_line()))
        print(f"{table(found)}\n\nwritten: {workdir / PROBE_FILE}")
    return 0


def plan_probe(config: RunConfig, checkpoint: Path, step: int | None = None) -> tuple[Any, Any, Any, Any]:
    """What is tried on a run: the config's last stage, after the stage of the run that a checkpoint is of.

    Args:
      config: its last stage begins with a probe; its corpus and evaluation are what is trained and measured on.
      checkpoint: a folder of `growlm train` or of a sweep's run, whose seed is taken over.
      step: of the checkpoint; by default the last one of the stage before the config's last, or of the run.

    Returns:
      (the stage, the checkpoint, the stage's text, the saved models that the stage names).

    Raises:
      InputError: no probe, no run, masks that are not open, whatever does not fit.
    """
    from growlm.training.init_from import find_sources
    from growlm.training.run import check_stage
    from growlm.training.saved import check_open, find_saved
    from growlm.training.stages import begin_stage
    from growlm.training.texts import corpus_cache, load_texts

    last = config.stages[-1]
    if last.growth is None or last.growth.probe is None:
        got = last.growth and last.growth.operator
        raise must_be(f"stages[{len(config.stages) - 1}].growth.operator", f"{PROBE!r} for growlm probe", got)
    if last.choice:
        raise must_be(f"stages[{len(config.stages) - 1}].choice", "unset for growlm probe", last.choice.scorer)
    saved = find_saved(checkpoint, step)
    if saved.stage is None:
        raise InputError(f"checkpoint must be a folder of growlm train or of a sweep's run, got {checkpoint}")
    if step is None and saved.stage.number > len(config.stages) - 2:
        stage = saved.stage
        while stage.number > len(config.stages) - 2:
            stage = stage.parent
        saved = find_saved(checkpoint, stage.last_step)
    check_open(saved)
    parent = dataclasses.replace(saved.stage, decided=saved.stage.decided | {"end": {"step": saved.step}})
    text, own = load_texts(config, corpus_cache())[-1], dataclasses.replace(config, seed=parent.run.seed)
    (said,), sources = find_sources([last], None)
    stage = begin_stage(dataclasses.replace(last, **said), own, text.known, parent)
    check_stage(stage, text, sources)
    return stage, saved, text, sources


def run_probe(stage: Any, saved: Any, text: Any, sources: Any) -> dict[str, Any]:
    """Try the candidates on a saved state, which is only read: the decision, and what was forked."""
    from growlm.buckets import origin
    from growlm.training.init_from import read_teacher
    from growlm.training.mesh import mesh_of
    from growlm.training.probe import probe
    from growlm.training.processes import is_first
    from growlm.training.saved import read_state

    def say(text: str) -> None:
        if is_first():
            print(f"growlm: {text}", file=sys.stderr, flush=True)

    mesh = mesh_of(stage.run.mesh, stage.run.batch_sizes)
    store = saved.checkpoints.parent.parent
    teacher = read_teacher(stage, sources, mesh, store, saved.step)
    found = probe(stage, read_state(saved, mesh), text=text, mesh=mesh, say=say, teacher=teacher)
    return found | {"checkpoint": origin(saved.folder), "step": saved.step}


def table(found: dict[str, Any]) -> str:
    """The candidates, the best first: loss right after growth, after the steps, and FLOPs."""
    from growlm.files import table as aligned

    def shown(loss: float | None) -> str:
        return "-" if loss is None else f"{loss:.4f}"

    def rank(item: tuple[str, dict[str, Any]]) -> tuple[bool, float, str]:
        name, tried = item
        loss = tried["val_loss"][-1]
        return loss is None, loss or 0.0, name

    rows = [("growth", "operator", "loss at growth", f"after {found['steps']} steps", "FLOPs")]
    for name, tried in sorted(found["candidates"].items(), key=rank):
        rows.append((name, tried["operator"], *map(shown, tried["val_loss"]), f"{tried['flops']:.2e}"))
    return aligned(rows, "<<>", rule=True) + f"\n\nbest: {found['chosen']}"
