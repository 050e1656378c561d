"""Folders of runs and sweeps as training leaves them, with planted losses."""

import json

SMALL = {"layers": 2, "embed": 64}
LARGE = {"layers": 8, "embed": 64}
PARAMETERS = {2: 1000, 8: 4000}


def write_run(folder, stages, factor=1.0, vocabulary_loss=10.0, steps=100, seed=None):
    """A run of (layers, tokens) stages that reaches every loss with `factor` of the baseline's compute."""
    folder.mkdir(parents=True)
    tokens = flops = 0.0
    lines = []
    for stage, (layers, budget) in enumerate(stages):
        for step in range(1, steps + 1):
            tokens += budget / steps
            flops += 6 * PARAMETERS[layers] * budget / steps
            loss = min(vocabulary_loss, 2 + (1e9 * factor / flops) ** 0.3)
            record = {"stage": stage, "step": step, "tokens": tokens, "flops": flops, "flops_exact": 1.1 * flops}
            record |= {"seconds": tokens / 100, "loss": loss + 0.01, "learning_rate": 1e-3, "tokens_per_second": 100.0}
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


def write_sweep(folder, runs, seed=None, **more):
    """A sweep folder; `runs` maps a name to the factor of its compute, or to None for one without a folder."""
    entries = {}
    for name, factor in runs.items():
        stages = [(2, 1e5), (8, 1e6)] if name.startswith("grown") else [(8, 1.1e6)]
        if factor is not None:
            write_run(folder / name, stages, factor, seed=seed)
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
        "controls": {name: f"why {name}" for name in runs if name.startswith("control")},
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


def write_seeds(folder, factors, **more):
    """A folder of sweeps: for each seed the factors of `write_sweep`."""
    for seed, runs in enumerate(factors):
        write_sweep(folder / f"cpu-{seed}", runs, seed=seed, **more)
    return folder
