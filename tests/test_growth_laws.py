"""When to grow, by how much and at which rate: the published laws and their fits."""

import ast
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import growlm.laws
from growlm import laws
from growlm.errors import InputError
from growlm.laws import RangeWarning, average_params, fit_growth_factor, fit_growth_timing, growth_timing, null_loss
from growlm.laws.intervals import percentile_interval, t_interval
from growlm.laws.isoflop import guideline_half_widths, slices_of
from growlm.laws.published import factor_caveats, timing_caveats


def test_laws_import_nothing_of_growlm_but_errors():
    for path in Path(growlm.laws.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            own = [name for name in names if name.split(".")[0] == "growlm"]
            assert all(name == "growlm.errors" or name.startswith("growlm.laws.") for name in own), (path, own)


@pytest.mark.parametrize(
    ("params", "tokens", "published"),
    [(8e9, 15e12, 6.58e9), (7e9, 2e12, 11.11e9), (13e9, 2e12, 15.84e9), (70e9, 2e12, 42.48e9)],
)
def test_growth_timing_gives_the_papers_examples(params, tokens, published):
    with pytest.warns(RangeWarning, match="above the range"):
        assert growth_timing(params, 6 * params * tokens) == pytest.approx(published, rel=1e-3)


def test_growth_timing_is_silent_where_it_was_fitted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 1e10 < growth_timing(1.1e9, 6 * 1.1e9 * 1e11) < 1.2e10


def test_growth_timing_says_that_it_asks_for_more_tokens_than_there_are():
    with pytest.warns(RangeWarning, match=r"grow after 1.08e\+10 tokens, and the whole run has 1e\+10"):
        growth_timing(1.24e8, 6 * 1.24e8 * 1e10)
    assert not any("whole run" in line for line in timing_caveats(1.1e9, 6.6e20))


def test_a_warning_points_at_whoever_asked():
    with pytest.warns(RangeWarning) as caught:
        growth_timing(7e9, 8.4e22)
    assert {warning.filename for warning in caught} == {__file__}


def test_the_papers_factor_is_four_and_its_equation_is_marked():
    assert laws.GROWTH_FACTOR == 4
    assert "NOT RECOMMENDED" in laws.growth_factor_equation.__doc__
    with pytest.warns(RangeWarning, match="advise against"):
        # the reference values were computed independently of this code
        assert laws.growth_factor_equation(1.1e9, 6.6e20) == pytest.approx(2.2, abs=0.05)
    with pytest.warns(RangeWarning):
        assert laws.growth_factor_equation(70e9, 8.4e23) == pytest.approx(221, abs=1)


def test_factors_that_lost_are_warned_of():
    assert factor_caveats(4, 6) == []
    assert "1 layer" in factor_caveats(24, 1)[0] and "24" in factor_caveats(24, 1)[1]


def test_step_law_gives_its_published_values():
    # 1.79 N^-0.713 D^0.307 and 0.58 D^0.571 at N = 1e9, D = 1e11, by logarithms
    assert laws.step_law_rate(1e9, 1e11) == pytest.approx(10 ** (0.252853 - 6.417 + 3.377), rel=1e-4)
    assert laws.step_law_batch(1e11) == pytest.approx(10 ** (-0.236572 + 6.281), rel=1e-4)
    assert laws.rate_factor_at_growth(4) == pytest.approx(0.37, abs=0.005)


def test_step_law_warns_outside_of_its_range():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        laws.step_law_rate(5e8, 5e10)
    with pytest.warns(RangeWarning, match="N = 7e"):
        laws.step_law_rate(7e9, 5e10)
    with pytest.warns(RangeWarning, match="D = 1e"):
        laws.step_law_rate(5e8, 1e6)


@given(st.floats(1.5, 64), st.floats(6e7, 1e9))
def test_the_factor_at_growth_is_what_step_law_says_of_both_sizes(factor, params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ratio = laws.step_law_rate(params * factor, 1e10) / laws.step_law_rate(params, 1e10)
    assert ratio == pytest.approx(laws.rate_factor_at_growth(factor))


def test_the_average_size_is_weighted_by_tokens():
    assert average_params([1e8, 4e8], [1e9, 3e9]) == pytest.approx(3.25e8)
    with pytest.raises(InputError, match="got 2 and 1"):
        average_params([1e8, 4e8], [1e9])


def test_under_the_null_hypothesis_growing_is_a_model_of_the_average_size():
    law = laws.REANALYSIS
    assert null_loss(law, [2e8], [1e10]) == pytest.approx(law.loss(2e8, 1e10))
    grown = null_loss(law, [1e8, 4e8], [1e10, 1e10])
    assert grown == pytest.approx(law.loss(2.5e8, 2e10))
    assert law.loss(4e8, 2e10) < grown < law.loss(1e8, 2e10)


def test_saturation_lowers_the_exponent_of_what_comes_after():
    def gain(first):
        arguments = {"coefficient": 10.0, "first": 0.05, "second": 0.3, "coupling": 0.005, "floor": 1.0}
        return math.log(laws.saturated_loss(first, 1e9, **arguments) - 1) - math.log(
            laws.saturated_loss(first, 1e10, **arguments) - 1
        )

    assert gain(1e10) == pytest.approx((0.3 - 0.005 * math.log(1e10)) * math.log(10))
    assert gain(1e10) < gain(1e8)


PLANTED = (0.9, 40.0, -3.0)


def best(params, flops, law=PLANTED):
    return 10 ** (law[0] * math.log10(params) + law[1] / math.log10(flops) + law[2])


def records(sizes=(4e6, 1.6e7, 6.4e7), budgets=(1, 4, 16), noise=0.0, seeds=3, key="grown_at", law=PLANTED, values=7):
    """Losses with a parabola about the planted best, from 1/8 to 8 times of it."""
    rng = np.random.default_rng(1)
    return [
        {
            "params": size,
            "flops": 40 * size**2 * budget,
            key: best(size, 40 * size**2 * budget, law) * step,
            "loss": 3 + 0.1 * seed + 0.2 * math.log10(step) ** 2 + rng.normal(0, noise),
            "seed": seed,
        }
        for size in sizes
        for budget in budgets
        for step in np.geomspace(0.15, 8, values)
        for seed in range(seeds)
    ]


def test_the_fit_recovers_planted_coefficients_exactly_without_noise():
    fit = fit_growth_timing(records(), resamples=50)
    assert [fit.a.value, fit.b.value, fit.c.value] == pytest.approx(PLANTED, rel=1e-6)
    assert fit.used == 9 and fit.scatter < 1e-6
    assert fit.predict(1e7, 1e17) == pytest.approx(best(1e7, 1e17))


def test_the_fit_recovers_planted_coefficients_from_noisy_losses_within_its_intervals():
    fit = fit_growth_timing(records(noise=0.01), resamples=500)
    for interval, planted in zip((fit.a, fit.b, fit.c), PLANTED, strict=True):
        assert planted in interval and interval.low < interval.value < interval.high
    assert fit.a.high - fit.a.low < 0.4
    assert fit.predict(1.6e7, 40 * 1.6e7**2 * 4) == pytest.approx(best(1.6e7, 40 * 1.6e7**2 * 4), rel=0.1)


def test_the_intervals_hold_the_truth_about_as_often_as_they_say():
    def holds(trial):
        rng = np.random.default_rng(trial)
        noisy = [row | {"loss": row["loss"] + rng.normal(0, 0.01)} for row in records(sizes=(1e7,), budgets=(1,))]
        return best(1e7, 4e15) in slices_of(noisy, "grown_at", resamples=300)[0].best

    assert 0.85 <= np.mean([holds(trial) for trial in range(200)]) <= 0.99


def test_what_a_study_would_tell_is_how_far_fits_to_noisy_minima_scatter():
    params, flops = (np.array(each) for each in ((4e6, 4e6, 3e7, 3e7, 3e7), (1e15, 8e15, 2e16, 9e16, 4e17)))
    columns = np.column_stack([np.log10(params), 1 / np.log10(flops), np.ones(5)])
    minima = columns @ PLANTED + np.random.default_rng(0).normal(0, 0.03, (20_000, 5))
    fitted = np.linalg.lstsq(columns, minima.T, rcond=None)[0]
    seen = [np.quantile(abs(each - planted), 0.95) for each, planted in zip(fitted, PLANTED, strict=True)]
    assert guideline_half_widths(params, flops, 0.03) == pytest.approx(seen, rel=0.03)


def test_more_noise_makes_wider_intervals():
    quiet, loud = (fit_growth_timing(records(noise=noise), resamples=300) for noise in (0.002, 0.02))
    assert loud.a.high - loud.a.low > 3 * (quiet.a.high - quiet.a.low)


def test_the_factor_is_fitted_alike_and_has_a_constant():
    found = fit_growth_factor(records(noise=0.002, key="factor", law=(0, 0, math.log10(3))), resamples=200)
    assert found.mean.value == pytest.approx(3, rel=0.05) and 3 in found.mean
    assert found.a.value == pytest.approx(0, abs=0.1)


def test_runs_that_never_grew_are_left_out():
    scratch = [{"params": 4e6, "flops": 40 * 4e6**2, "grown_at": 0.0, "loss": 9.0, "seed": 0}]
    assert fit_growth_timing(records() + scratch, resamples=20).a.value == pytest.approx(PLANTED[0])


def test_a_minimum_beyond_what_was_tried_is_not_used():
    early = [
        row for row in records(sizes=(4e6,), budgets=(1,), values=15) if row["grown_at"] < best(4e6, 40 * 4e6**2) / 2
    ]
    found = slices_of(early, "grown_at", resamples=50)[0]
    assert found.best is None and "beyond the largest value tried" in found.reason and "larger" in found.reason


def test_losses_without_a_valley_have_no_minimum():
    ridge = [row | {"loss": -row["loss"] + 10} for row in records(sizes=(4e6,), budgets=(1,))]
    assert "do not curve upwards" in slices_of(ridge, "grown_at", resamples=50)[0].reason


def test_noise_alone_rarely_has_a_minimum():
    def found(trial):
        rng = np.random.default_rng(trial)
        flat = [row | {"loss": 3 + rng.normal(0, 0.1)} for row in records(sizes=(4e6,), budgets=(1,))]
        return slices_of(flat, "grown_at", resamples=200)[0].best is not None

    assert np.mean([found(trial) for trial in range(100)]) < 0.12


def test_too_few_values_say_how_many_more():
    found = slices_of(records(sizes=(4e6,), budgets=(1,), values=3), "grown_at")[0]
    assert found.best is None and found.reason == "3 values tried: a parabola with an interval needs 1 more"


@pytest.mark.parametrize(
    ("chosen", "missing"),
    [
        ({"sizes": (4e6,), "budgets": (1, 4)}, "2 more slices, 1 more size "),
        ({"sizes": (4e6,)}, "1 more slice, 1 more size "),
        ({"sizes": (4e6, 1.6e7), "budgets": (1,)}, "2 more slices"),
    ],
)
def test_too_few_slices_say_how_many_more(chosen, missing):
    with pytest.raises(InputError, match=missing) as error:
        fit_growth_timing(records(**chosen), resamples=20)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": None}, "record 5 has no 'seed'"),
        ({"loss": math.nan}, "loss of record 5 must be > 0, got nan"),
        ({"loss": math.inf}, "loss of record 5 must be finite, got inf"),
        ({"grown_at": -1.0}, "record 5"),
    ],
)
def test_records_that_cannot_be_used_are_named(change, said):
    rows = records()
    rows[5] = rows[5] | change
    with pytest.raises(InputError, match=said):
        fit_growth_timing(rows, resamples=20)


def test_a_missing_seed_and_a_double_one_are_named():
    rows = records()
    with pytest.raises(InputError, match="has no seed 2 at grown_at"):
        fit_growth_timing(rows[:2] + rows[3:], resamples=20)
    with pytest.raises(InputError, match="seed 0 twice"):
        fit_growth_timing([*rows, rows[0]], resamples=20)


def test_students_interval_is_the_textbooks():
    # Student (1908), the additional hours of sleep under drug 1 and 2: difference 0.70 to 2.46
    hours = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    found = t_interval(hours)
    assert found.value == pytest.approx(1.58) and (found.low, found.high) == pytest.approx((0.70, 2.46), abs=0.005)
    assert t_interval(hours[:1]).low is None


def test_percentiles_are_of_the_level():
    found = percentile_interval(5.0, np.arange(101), level=0.9)
    assert (found.value, found.low, found.high, found.level) == pytest.approx((5.0, 5.0, 95.0, 0.9))
    with pytest.raises(InputError, match="level"):
        percentile_interval(5.0, np.arange(101), level=95)
