"""Folders of runs and sweeps as training leaves them, with planted losses."""

import json

SMALL = {"layers": 2, "embed": 64}
LARGE = {"layers": 8, "embed": 64}
PARAMETERS = {2: 1000, 5: 2500, 8: 4000}
CONTROLS = ("control", "untrained", "average_size", "short", "scratch_tuned")  # what their names begin with
STAGES = {  # by what names begin with; all others train 8 layers on 1.1e6 tokens
    "grown": [(2, 1e5), (8, 1e6)],
    "untrained": [(2, 0.0), (8, 1.1e6)],
    "average_size": [(5, 1.76e6)],
    "short": [(8, 0.75e6)],
}


def write_run(folder, stages, factor=1.0, vocabulary_loss=10.0, steps=100, seed=None, end_lr_ratio=1.0):
    """A run of (layers, tokens) stages that reaches every loss with `factor` of the baseline's compute."""
    folder.mkdir(parents=True)
    tokens = flops = 0.0
    lines = []
    for stage, (layers, budget) in enumerate(stages):
        for step in range(1, steps + 1) if budget else (0,):
            tokens += budget / steps
            flops += 6 * PARAMETERS[layers] * budget / steps
            loss = min(vocabulary_loss, 2 + (1e9 * factor / flops) ** 0.3) if flops else vocabulary_loss
            rate = 1e-3 * (1 - (1 - end_lr_ratio) * step / steps)
            record = {"stage": stage, "step": step, "tokens": tokens, "flops": flops, "flops_exact": 1.1 * flops}
            record |= {"seconds": tokens / 100, "loss": loss + 0.01, "learning_rate": rate, "tokens_per_second": 100.0}
            if step % 5 == 0:
                record["val_loss"] = loss
            lines.append(json.dumps(record))
        if stage:
            report = {"operator": "direct", "options": {"order": "stack"}, "source": SMALL, "target": LARGE}
            report |= {"parameters_before": 1000, "parameters_after": 4000}
            (folder / f"growth-{stage}.json").write_text(json.dumps(report))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    config = {"model": LARGE, "data": "<i>text & more</i>"} | ({} if seed is None else {"seed": seed})
    (folder / "config.json").write_text(json.dumps(config))


def write_sweep(folder, runs, seed=None, end_lr_ratio=1.0, **more):
    """A sweep folder; `runs` maps a name to the factor of its compute, or to None for one without a folder."""
    entries = {}
    for name, factor in runs.items():
        stages = next((of for start, of in STAGES.items() if name.startswith(start)), [(8, 1.1e6)])
        if factor is not None:
            write_run(folder / name, stages, factor, seed=seed, end_lr_ratio=end_lr_ratio)
        reused = name != "grown"
        entries[name] = {
            "stages": [
                {"address": f"{n}a{b:.0f}", "tokens": int(b), "flops": 6e3 * b, "reused": reused} for n, b in stages
            ],
            "status": "done" if factor is not None else "pending",
            "error": None,
        }
    sweep = {
        "baseline": "scratch",
        "grown": [name for name in runs if name.startswith("grown")],
        "controls": {name: f"why {name}" for name in runs if name.startswith(CONTROLS)},
        "title": "A <study> of & growth",
        "command": "growlm sweep --config='a.py' <here>",
        "runs": entries,
        "flops_trained": 5e10,
        "flops_saved_by_sharing": 1.25e9,
        "hardware": "two cores",
        "commit": None,
    }
    (folder / "sweep.json").write_text(json.dumps(sweep | more))
    return folder


def search(tries, seed=0, key="peak_lr", flops=2.5e10):
    """The search of sweep.json; `tries` maps a run to values and their losses, None for one that diverged."""
    runs = {}
    for name, losses in tries.items():
        done = {value: loss for value, loss in losses.items() if loss is not None}
        chosen = min(done, key=done.get, default=None)
        runs[name] = {
            "tries": [
                {
                    "value": value,
                    "run": f"{name}@{key}={value}",
                    "val_loss": loss,
                    "status": "done" if loss else "failed",
                }
                for value, loss in losses.items()
            ],
            "chosen": chosen,
            "at_end": not isinstance(chosen, str) and chosen in (min(losses), max(losses)),
        }
    return {"key": key, "seed": seed, "flops": flops, "runs": runs}


def write_seeds(folder, factors, **more):
    """A folder of sweeps: for each seed the factors of `write_sweep`."""
    for seed, runs in enumerate(factors):
        write_sweep(folder / f"cpu-{seed}", runs, seed=seed, **more)
    return folder
