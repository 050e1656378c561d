"""Kaplan's laws: the published constants agree with each other, planted ones are recovered, the command on a table."""

import csv

import numpy as np
import pytest
from test_fit import fitted, write_run

from growlm.__main__ import main
from growlm.errors import InputError
from growlm.laws.kaplan import (
    KAPLAN_CURVE,
    KAPLAN_LOSS,
    PF_DAY,
    KaplanCurve,
    KaplanLoss,
    fit_kaplan_curve,
    fit_kaplan_loss,
    kaplan_compute_loss,
    measure_critical_batch,
)

PLANTED = KaplanCurve(alpha_N=0.09, N_c=2e13, alpha_S=0.6, S_c=3e3, alpha_B=0.19, B_star=3e8)


def grid(law=PLANTED, noise=0.0, seed=0):
    """(params, steps, batch, loss) of runs with every size, length and batch."""
    axes = np.geomspace(1e6, 1e9, 4), np.geomspace(3e3, 3e5, 4), np.geomspace(3e4, 3e6, 4)
    params, steps, batch = (axis.ravel() for axis in np.meshgrid(*axes))
    loss = np.array([law.loss_at(*row) for row in zip(params, steps, batch, strict=True)])
    return params, steps, batch, loss * np.exp(np.random.default_rng(seed).normal(0, noise, len(loss)))


def test_the_published_constants_agree_with_each_other():
    # arXiv 2001.08361: 0.054 of equation 1.8, N ~ C^0.73 (0.71 by theory), B ~ C^0.24, S ~ C^0.03, D ~ N^0.74
    exponent = KAPLAN_CURVE.compute_exponent
    assert exponent == pytest.approx(0.054, abs=0.002)
    shares = [exponent / getattr(KAPLAN_CURVE, f"alpha_{name}") for name in "NBS"]
    assert shares == pytest.approx([0.71, 0.24, 0.07], abs=0.035) and sum(shares) == pytest.approx(1)
    assert KAPLAN_LOSS.alpha_N / KAPLAN_LOSS.alpha_D == pytest.approx(0.74, abs=0.005)
    # table 6: at one PF-day the critical batch is 2.0e6 tokens, and the loss by either law agrees to 2 %
    loss = float(kaplan_compute_loss(PF_DAY))
    assert KAPLAN_CURVE.critical_batch(loss) == pytest.approx(2.0e6, rel=0.02)
    assert KAPLAN_CURVE.compute_optimal(2.694)[0] == pytest.approx(PF_DAY, rel=0.02) and loss == pytest.approx(
        2.694, rel=0.02
    )
    assert KAPLAN_LOSS.loss(1.5e9, 1e30) == pytest.approx((6.4e13 / 1.5e9) ** 0.076)


def test_at_the_critical_batch_steps_and_tokens_are_twice_their_least():
    loss = 3.0
    batch = PLANTED.critical_batch(loss)
    least = PLANTED.min_steps(1e8, loss)
    assert PLANTED.steps(1e8, loss, batch) == pytest.approx(2 * least)
    small = 1e-6 * batch
    assert PLANTED.steps(1e8, loss, batch) * batch == pytest.approx(
        2 * PLANTED.steps(1e8, loss, small) * small, rel=1e-5
    )
    assert PLANTED.loss(1e8, least) == pytest.approx(loss)
    assert PLANTED.min_steps(1e8, 1.0) == np.inf  # below the converged loss


@pytest.mark.parametrize("batch", [1e4, 1e6, 1e9])
def test_the_loss_after_so_many_steps_is_where_it_takes_so_many(batch):
    loss = PLANTED.loss_at(1e8, 2e4, batch)
    assert PLANTED.steps(1e8, loss, batch) == pytest.approx(2e4)
    assert PLANTED.loss_at(1e8, 4e4, batch) < loss < PLANTED.loss_at(1e8, 2e4, batch / 2)


def test_the_compute_optimal_size_is_the_best_of_all():
    loss = 2.8
    flops, params, steps = PLANTED.compute_optimal(loss)
    sizes = params * np.geomspace(0.3, 3, 20_001)
    costs = 6 * sizes * PLANTED.critical_batch(loss) * PLANTED.min_steps(sizes, loss)
    assert costs.min() == pytest.approx(flops) and sizes[np.argmin(costs)] == pytest.approx(params, rel=1e-3)
    assert PLANTED.loss(params, steps) == pytest.approx(loss)
    costs = [PLANTED.compute_optimal(one)[0] for one in (2.8, 2.8 * 1.01)]
    assert np.log(1 / 1.01) / np.log(costs[0] / costs[1]) == pytest.approx(-PLANTED.compute_exponent)


def test_a_planted_critical_batch_is_recovered():
    fit = fit_kaplan_curve(*grid(), resamples=2)
    assert list(vars(fit.law).values()) == pytest.approx(list(vars(PLANTED).values()), rel=1e-4)
    noisy = fit_kaplan_curve(*grid(noise=0.003), resamples=40)
    held = [getattr(PLANTED, name) in interval for name, interval in noisy.intervals.items()]
    assert sum(held) >= 5 and noisy.residual == pytest.approx(0.003, rel=0.3)
    assert noisy.law.critical_batch(3.0) == pytest.approx(PLANTED.critical_batch(3.0), rel=0.1)


def test_a_planted_loss_of_size_and_data_is_recovered():
    law = KaplanLoss(0.08, 5e13, 0.11, 3e13)
    params, tokens = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e9, 4), np.geomspace(2e7, 2e10, 4)))
    fit = fit_kaplan_loss(params, tokens, law.loss(params, tokens), resamples=2)
    assert list(vars(fit.law).values()) == pytest.approx([0.08, 5e13, 0.11, 3e13], rel=1e-4)


def test_a_start_that_leads_to_an_exponent_of_0_is_a_bad_one_and_no_error():
    sizes, steps = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e8, 3), np.geomspace(1e3, 1e6, 4)))
    loss = np.array([KAPLAN_CURVE.loss_at(size, step, 2.0**19) for size, step in zip(sizes, steps, strict=True)])
    fit = fit_kaplan_loss(sizes, steps * 2.0**19, loss, resamples=2)
    assert all(np.isfinite(value) for value in vars(fit.law).values()) and fit.residual < 0.05


def test_the_critical_batch_of_one_loss_is_measured_from_its_runs():
    batch = np.array([1e4, 1e5, 1e6, 1e7])
    assert measure_critical_batch(batch, 500 * (1 + 3e5 / batch)) == pytest.approx((500, 3e5))
    with pytest.raises(InputError, match="needs 3 batches and has 2: 1 more"):
        measure_critical_batch(batch[:2], batch[:2])
    with pytest.raises(InputError, match="steps must fall as the batch grows"):
        measure_critical_batch(batch, batch)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (slice(0, 8), "needs 9 points and has 8: 1 more"),
        (np.s_[::4], "needs 3 batches and has 1: 2 more"),
    ],
)
def test_too_few_points_say_how_many_more(kept, said):
    with pytest.raises(InputError, match=said):
        fit_kaplan_curve(*(column[kept] for column in grid()))


def write_table(path, names):
    params, steps, batch, loss = grid()
    columns = {
        "params": params,
        "tokens": steps * batch,
        "batch": batch,
        "flops": 6 * params * steps * batch,
        "loss": loss,
    }
    with path.open("w") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerows([names, *zip(*(columns[name] for name in names), strict=True)])


def test_the_command_fits_a_table_beside_the_published_constants(tmp_path, capsys):
    write_table(tmp_path / "runs.csv", ["params", "tokens", "batch", "flops", "loss"])
    assert main(["fit", "--law=kaplan", f"--runs={tmp_path / 'runs.csv'}"]) == 0
    text = capsys.readouterr().out
    curve = text.split("S_c/S_min")[1]
    assert fitted(curve, "alpha_B")[0] == pytest.approx(0.19, abs=1e-3) and "0.21" in curve and "6.4e+13" in text
    assert "critical batch, tokens: " in curve and "alpha_C 0.0554; Kaplan's 0.0525" in curve
    write_table(tmp_path / "runs.csv", ["params", "tokens", "flops", "loss"])
    assert main(["fit", "--law=kaplan", f"--runs={tmp_path / 'runs.csv'}"]) == 0
    assert "not fitted: runs: the critical batch needs a column batch" in capsys.readouterr().out
    write_table(tmp_path / "runs.csv", ["flops", "loss"])
    assert main(["fit", "--law=kaplan", f"--runs={tmp_path / 'runs.csv'}"]) == 2
    error = capsys.readouterr().err
    assert "runs.csv must have params in every row, got flops, loss" in error and error.count("\n") == 1


def test_runs_of_too_few_sizes_are_one_line(tmp_path, capsys):
    write_run(tmp_path / "one", lambda *_: 3.0)
    assert main(["fit", "--law=kaplan", f"--runs={tmp_path}", "--checkpoints=0.1"]) == 2
    error = capsys.readouterr().err
    assert "L(N, D) needs 3 sizes and has 1: 2 more" in error and error.count("\n") == 1
