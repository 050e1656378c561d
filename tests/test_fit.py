"""`growlm fit` on folders of runs with planted laws."""

import json
import math

import numpy as np
import pytest

from growlm.__main__ import main
from growlm.models import ModelConfig, parameter_count
from growlm.report.outcomes import budget_records, outcomes
from growlm.report.points import read_points
from growlm.report.scaling import fit_scaling

GROWTH = {"operator": "direct", "options": {"order": "stack"}, "optimizer_state": "reset", "train": "all"}
STEPS = 40


def model(layers, embed):
    shape = {
        "layers": layers,
        "embed": embed,
        "heads": 2,
        "kv_heads": 2,
        "head_dim": 32,
        "mlp": 3 * embed,
        "vocab": 256,
    }
    return shape, parameter_count(ModelConfig(**shape))


def write_run(folder, loss, embed=64, grown_at=0.0, layers=(2, 8), tokens=None, seed=0, growth=GROWTH):
    """A run folder as training leaves it; `loss(params, flops, grown_at, factor)` says what was measured."""
    (small, n), (large, N) = model(layers[0], embed), model(layers[1], embed)
    tokens, factor = tokens or 20 * N, layers[1] / layers[0]
    stages = [{"model": small, "tokens": grown_at, "growth": None}] if grown_at else []
    stages.append({"model": large, "tokens": tokens, "growth": growth if grown_at else None})
    before = [(grown_at * part, 6 * n * grown_at * part) for part in (0.5, 1.0)] if grown_at else []
    start = 6 * n * grown_at
    after = [(grown_at + tokens * part, start + 6 * N * tokens * part) for part in np.linspace(0, 1, STEPS)]
    records = [{"stage": 0, "step": i, "tokens": t, "flops": c, "val_loss": 9.0} for i, (t, c) in enumerate(before)]
    for step, (seen, paid) in enumerate(after, len(records)):
        value = loss(N, paid, grown_at, factor) if paid else 9.0
        record = {"stage": len(stages) - 1, "step": step, "tokens": seen, "flops": paid, "val_loss": value}
        records += [record, {**record, "step": step + 1000, "val_loss": None}]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"seed": seed, "stages": stages}))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))


PLANTED = (0.7, 60.0, -2.6)


def best_tokens(params, flops):
    return 10 ** (PLANTED[0] * math.log10(params) + PLANTED[1] / math.log10(flops) + PLANTED[2])


def valley(params, flops, grown_at, factor):
    base = 1.5 + 400 * flops**-0.2
    return base + 0.1 * (math.log10(grown_at) - math.log10(best_tokens(params, flops))) ** 2 if grown_at else base + 0.1


def timing_sweep(folder, sizes=(64, 128, 256), values=(0.15, 0.4, 1, 2.5, 6), seeds=(0, 1), loss=valley, **options):
    for embed in sizes:
        N = model(8, embed)[1]
        centre = best_tokens(N, 100 * N**2)
        for value in values:
            for seed in seeds:
                write_run(folder / f"{embed}-{value}-{seed}", loss, embed, value * centre, seed=seed, **options)


def error_of(capsys):
    return capsys.readouterr().err


def fitted(text, name):
    """(value, low, high) of a coefficient in the table that was printed."""
    row = next(line for line in text.splitlines() if line.startswith(f"{name} "))
    return [float(part.strip("[],")) for part in row.split()[1:4]]


def test_the_timing_law_of_runs_is_recovered_and_shown_beside_the_papers(tmp_path, capsys):
    rng = np.random.default_rng(0)
    timing_sweep(tmp_path, loss=lambda *run: valley(*run) + rng.normal(0, 0.002))
    write_run(tmp_path / "scratch", valley)
    assert main(["fit", f"--runs={tmp_path}", "--law=timing"]) == 0
    text = capsys.readouterr().out
    for name, planted in zip("abc", PLANTED, strict=True):
        value, low, high = fitted(text, name)
        assert low <= planted <= high and low < value < high, name
    assert "163.27" in text and "equation 2" in text and "12 of 12 slices" in text
    assert "not grown once from a trained model, so not in the fit: scratch" in text


def test_records_are_read_off_at_budgets_after_growth_only(tmp_path):
    timing_sweep(tmp_path, sizes=(64,), seeds=(0,))
    n, N = model(2, 64)[1], model(8, 64)[1]
    write_run(tmp_path / "late", valley, grown_at=0.85 * 20 * N**2 / n)  # too late for any slice
    runs, left_out = outcomes(tmp_path)
    assert left_out == [] and {run.factor for run in runs} == {4.0} and {run.stages for run in runs} == {2}
    for run in runs:
        assert run.params == N and run.grown_flops == pytest.approx(6 * n * run.grown_at)
        assert run.tokens == pytest.approx(run.grown_at + 20 * N)
    records = budget_records(runs, 3)
    budgets = sorted({record["flops"] for record in records})
    assert budgets[-1] == min(run.curve.flops[-1] for run in runs)
    assert np.diff(np.log2(budgets)) == pytest.approx([0.5, 0.5])
    for record in records:
        assert record["loss"] == pytest.approx(valley(N, record["flops"], record["grown_at"], 4), rel=2e-3)
        assert 6 * n * record["grown_at"] <= 0.8 * record["flops"]
    assert len(records) == 3 * 5 and {run.name for run in runs} >= {"late"}


def test_too_few_slices_are_shown_and_counted(tmp_path, capsys):
    timing_sweep(tmp_path, sizes=(64,))
    assert main(["fit", f"--runs={tmp_path}", "--law=timing", "--slices=1"]) == 2
    out, error = capsys.readouterr()
    assert "460K" in out and out.count("[") == 2
    assert "3 more slices, 1 more size, 1 more budget " in error and error.count("\n") == 1


def test_the_factor_has_a_constant_and_slices(tmp_path, capsys):
    def loss(params, flops, grown_at, factor):
        return 1.5 + 400 * flops**-0.2 + 0.3 * math.log10(factor / 3) ** 2 if grown_at else 9.0

    for embed in (64, 128):
        for layers in (1, 2, 3, 6, 12):
            write_run(tmp_path / f"{embed}-{layers}", loss, embed, 1e6, layers=(layers, 24))
    write_run(tmp_path / "untrained", loss, 64, 1e-9, layers=(2, 24))
    records = (tmp_path / "untrained" / "metrics.jsonl").read_text().replace("1e-09", "0.0")
    (tmp_path / "untrained" / "metrics.jsonl").write_text(records)
    assert main(["fit", f"--runs={tmp_path}", "--law=factor"]) == 0
    text = capsys.readouterr().out
    assert "so not in the fit: untrained" in text
    assert "the constant: 3 [" in text or "the constant: 3.00" in text
    assert "the paper's: 4" in text and "advises against" in text and "2 to 24" in text


def test_scaling_laws_of_final_losses(tmp_path, capsys):
    for number, embed in enumerate((64, 96, 128, 160, 192)):
        for part in (0.5, 1, 2):
            tokens = 20 * part * model(8, embed)[1]
            write_run(tmp_path / f"s{number}-{part}", valley, embed, tokens=tokens)
        write_run(tmp_path / f"g{number}", lambda N, C, d, g: 1.2 * (C / 1e14) ** -0.1, embed, 1e5)
    fit_scaling(tmp_path, print, resamples=3)
    text = capsys.readouterr().out
    grown = next(line for line in text.splitlines() if line.startswith("grown: L = a C^b"))
    assert "b -0.1 [" in grown
    floored = next(line for line in text.splitlines() if line.startswith("from scratch: L = E + a C^b"))
    assert "E 1.6 [" in floored and "b -0.2 [" in floored  # 1.5 and the 0.1 that scratch is worse by
    assert fitted(text, "E")[0] < 1.7 and "Chinchilla's" in text


def test_scaling_laws_of_a_table_with_a_floor_and_a_forecast(tmp_path, capsys):
    params, tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e8, 1e10, 4), np.geomspace(1e9, 1e11, 4)))
    rows = [f"{n},{d},{6 * n * d},{1.7 + 300 * n**-0.3 + 900 * d**-0.3}" for n, d in zip(params, tokens, strict=True)]
    (tmp_path / "grid.csv").write_text("\n".join(["N,tokens,flops,loss", *rows]))
    words = ["fit", "--law=scaling", f"--runs={tmp_path / 'grid.csv'}", "--at=1e20,1e24", "--floor=1.7"]
    assert main([*words, "--column.params=N"]) == 0
    text = capsys.readouterr().out
    assert (
        "grid: L = E + a C^b E 1.7, a " in text and text.count("one more run at 1.00e24 FLOPs, 167 x the largest") == 2
    )
    assert fitted(text, "alpha")[0] == pytest.approx(0.3, abs=0.01)
    assert main(words) == 0
    assert "alpha" not in capsys.readouterr().out  # without parameters there is no L(N, D)
    assert main([*words[:-1], "--column.size=N"]) == 2
    assert "column must be one of batch, family, flops, loss, params, tokens" in capsys.readouterr().err
    assert main(["fit", "--law=multiplier", words[2], "--floor=1.7"]) == 2
    assert "--floor must be left out with --law=multiplier" in capsys.readouterr().err
    assert main([*words[:3], "--slices=2"]) == 2
    assert "--slices must be left out with --law=scaling, got 2" in capsys.readouterr().err


LOSS = {"E": 1.6, "A": 60.0, "B": 300.0, "alpha": 0.35, "beta": 0.3}


def along(params, flops, grown_at, factor):
    tokens = flops / (6 * params)
    return (
        14.0 if tokens < 5e5 else LOSS["E"] + LOSS["A"] * params ** -LOSS["alpha"] + LOSS["B"] * tokens ** -LOSS["beta"]
    )


def test_all_losses_of_a_run_but_for_its_beginning_are_fitted(tmp_path, capsys):
    for embed in (64, 96, 128, 192):
        write_run(tmp_path / str(embed), along, embed, tokens=20 * model(8, 64)[1])
    fit_scaling(tmp_path, print, checkpoints=0.1, resamples=3)
    text = capsys.readouterr().out
    for name, planted in LOSS.items():
        assert fitted(text, name)[0] == pytest.approx(planted, rel=0.03), name
    assert "losses of 4 runs, residual 0.0" in text and "L(C) is not fitted" in text and "4 % is the best error" in text
    assert "predicted with an error of 0.0%" in text and "with what is borrowed" not in text
    with_beginning, without = (read_points(tmp_path, print, {}, share)[0] for share in (0.0, 0.1))
    assert with_beginning.loss.max() == 14 > without.loss.max() and set(without.run) == {0, 1, 2, 3}


def test_exponents_are_borrowed_by_number_and_by_the_name_of_a_law(tmp_path, capsys):
    write_run(tmp_path / "one", along, 128)
    words = ["fit", "--law=scaling", f"--runs={tmp_path}", "--checkpoints=0.1", "--borrow.A=60", "--borrow.alpha=0.35"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "60 borrowed" in text and "0.35 borrowed" in text and "from under 1 % to 37 %" in text
    assert float(next(line for line in text.splitlines() if line.startswith("E ")).split()[1]) == pytest.approx(
        1.6, rel=0.03
    )
    assert "cannot be left out and predicted" in text
    for bad, said in (
        ("--borrow.alpha=kaplan", "must be one of hoffmann, muennighoff, reanalysis"),
        ("--borrow.gamma=1", "--borrow must be one of A, B, E, alpha, beta"),
        ("--checkpoints=1", "checkpoints must be >= 0 and < 1"),
    ):
        assert main([*words[:3], bad]) == 2
        assert said in capsys.readouterr().err
    assert main([*words[:3], "--borrow.A=muennighoff", "--borrow.alpha=muennighoff", "--checkpoints=0.1"]) == 0
    assert "521 borrowed" in capsys.readouterr().out


def test_checkpoints_of_a_table_are_runs_by_size(tmp_path, capsys):
    rows = ["params,tokens,flops,loss"]
    for params in (1e5, 2e5, 4e5, 8e5):
        rows += [
            f"{params},{t},{6 * params * t},{along(params, 6 * params * t, 0, 0)}" for t in np.geomspace(1e4, 1e7, 20)
        ]
    (tmp_path / "curves.csv").write_text("\n".join(rows))
    fit_scaling(tmp_path / "curves.csv", print, checkpoints=0.01, resamples=3)
    text = capsys.readouterr().out
    assert fitted(text, "alpha")[0] == pytest.approx(0.35, rel=0.02) and "losses of 4 runs" in text
    (tmp_path / "short.csv").write_text("flops,loss\n1e18,3\n")
    assert main(["fit", "--law=scaling", f"--runs={tmp_path / 'short.csv'}", "--checkpoints=0.1"]) == 2
    assert "must have params in every row, got flops, loss" in capsys.readouterr().err
    assert main(["fit", "--law=kaplan", f"--runs={tmp_path / 'short.csv'}"]) == 2
    assert "must have params in every row, got flops, loss" in capsys.readouterr().err


def test_too_few_runs_for_any_scaling_law_say_how_many_more(tmp_path, capsys):
    write_run(tmp_path / "one", valley)
    assert main(["fit", f"--runs={tmp_path}", "--law=scaling"]) == 2
    assert (
        "from scratch: the power law needs 3 budgets, 5 % apart at least, and has 1: 2 more" in capsys.readouterr().err
    )


def sweep_of(folder, name, change):
    runs = {path.name: {"status": "done"} for path in folder.iterdir()}
    runs[name] |= change
    (folder / "sweep.json").write_text(json.dumps({"title": "t", "runs": runs, "baseline": name}))


def test_runs_that_are_not_done_are_left_out_and_named(tmp_path, capsys):
    timing_sweep(tmp_path, sizes=(64, 128), seeds=(0,))
    sweep_of(tmp_path, "64-1-0", {"status": "failed", "error": "diverged"})
    assert main(["fit", f"--runs={tmp_path}", "--law=timing"]) == 0
    assert "left out: 64-1-0 is failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prepare", "law", "said"),
    [
        (lambda folder: None, "timing", "got one without runs"),
        (lambda folder: write_run(folder / "a", valley), "timing", "got none with two stages"),
        (
            lambda folder: write_run(folder / "a", valley),
            "tempo",
            "law must be one of factor, kaplan, multiplier, scaling, timing, got 'tempo'",
        ),
        (lambda folder: timing_sweep(folder, (64,), loss=lambda *run: math.nan), "timing", "val_loss is not finite"),
        (
            lambda folder: timing_sweep(folder, (64,)) or (folder / "64-1-1" / "config.json").unlink(),
            "timing",
            "must have stages",
        ),
    ],
)
def test_bad_folders_are_one_line_and_2(tmp_path, capsys, prepare, law, said):
    prepare(tmp_path)
    assert main(["fit", f"--runs={tmp_path}", f"--law={law}"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("growlm: ") and error.count("\n") == 1


def test_runs_that_differ_in_more_than_the_timing_are_not_compared(tmp_path, capsys):
    timing_sweep(tmp_path, sizes=(64,), seeds=(0,))
    write_run(tmp_path / "deeper", valley, grown_at=1e6, layers=(4, 8))
    assert main(["fit", f"--runs={tmp_path}", "--law=timing"]) == 2
    assert "must not differ in growth factor, got 2 and 4" in capsys.readouterr().err
    assert main(["fit", f"--runs={tmp_path}", "--law=factor"]) == 2
    assert "must not differ in tokens before growth" in capsys.readouterr().err


def test_a_missing_seed_is_named(tmp_path, capsys):
    timing_sweep(tmp_path, sizes=(64, 128))
    for path in (tmp_path / "64-1-1").iterdir():
        path.unlink()
    assert main(["fit", f"--runs={tmp_path}", "--law=timing"]) == 2
    assert "has no seed 1 at grown_at" in capsys.readouterr().err


def test_other_operators_are_not_mixed_in(tmp_path, capsys):
    timing_sweep(tmp_path, sizes=(64,), seeds=(0,))
    write_run(tmp_path / "zero", valley, grown_at=1e6, growth=GROWTH | {"operator": "zero"})
    assert main(["fit", f"--runs={tmp_path}", "--law=timing"]) == 2
    assert "must not differ in growth" in capsys.readouterr().err
