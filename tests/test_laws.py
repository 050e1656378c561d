import json

import numpy as np
import pytest

from growlm import laws
from growlm.errors import InputError
from growlm.laws import (
    Curve,
    cost_to_reach,
    curve,
    exact_flops_per_token,
    loss_at,
    smooth,
    speedup,
    speedup_over_seeds,
    training_flops,
)
from growlm.laws.intervals import distinct


def power_law(flops, factor=1.0):
    """A run that reaches every loss with `factor` of the compute of another."""
    flops = np.asarray(flops, np.float64)
    return Curve(flops, 1.7 + 400 * (flops / factor) ** -0.16)


def test_training_flops_is_six_per_parameter_and_token():
    # the paper's 1.1B model has 1364.3M parameters in total; its figures end at 8e20 FLOPs for 97.7B tokens
    assert training_flops(1364.3e6, 97.7e9) == pytest.approx(8e20, rel=1e-3)


def test_exact_flops_count_every_product_of_a_small_model():
    layers, heads, head_dim, length = 3, 2, 5, 7
    macs = 0
    for position in range(length):
        for _key in range(position + 1):
            macs += layers * heads * head_dim  # the score
            macs += layers * heads * head_dim  # the weighted value
    forward_and_backward = 3 * 2 * macs / length
    per_token = exact_flops_per_token(1000, layers, heads, head_dim, length)
    assert per_token == pytest.approx(6 * 1000 + forward_and_backward)


@pytest.mark.parametrize("window", [1, 3, 7, 9])
def test_exact_flops_with_a_window_count_the_keys_that_are_seen(window):
    keys = sum(min(position + 1, window) for position in range(7)) / 7
    expected = 6 * 1000 + 3 * 2 * 3 * 2 * 2 * 5 * keys
    assert exact_flops_per_token(1000, 3, 2, 5, 7, window) == pytest.approx(expected)


def test_exact_flops_without_attention_are_the_papers():
    assert exact_flops_per_token(1000, 0, 2, 5, 7) == training_flops(1000, 1)


def test_curve_takes_the_records_with_the_key_in_order_of_flops():
    records = [
        {"flops": 30.0, "tokens": 3, "seconds": 0.3, "loss": 9.0, "val_loss": 2.0},
        {"flops": 20.0, "tokens": 2, "seconds": 0.2, "loss": 9.0},
        {"flops": 10.0, "tokens": 1, "seconds": 0.1, "loss": 9.0, "val_loss": 4.0},
        {"flops": 40.0, "tokens": 4, "seconds": 0.4, "loss": 9.0, "val_loss": None},
    ]
    drawn = curve(records)
    assert drawn.flops.tolist() == [10, 30] and drawn.loss.tolist() == [4, 2]
    assert drawn.tokens.tolist() == [1, 3] and drawn.seconds.tolist() == [0.1, 0.3]
    assert drawn.loss.dtype == np.float64
    assert len(curve(records, key="loss").loss) == 4


def test_curve_without_times_has_none():
    drawn = curve([{"flops": 1.0, "val_loss": 2.0, "seconds": 1}, {"flops": 2.0, "val_loss": 1.0}])
    assert drawn.seconds is None
    with pytest.raises(InputError, match="seconds"):
        cost_to_reach(drawn, 1.5, "seconds")


@pytest.mark.parametrize("bad", ["NaN", "Infinity"])
def test_curve_refuses_a_loss_that_is_not_finite(bad):
    records = [{"flops": 1.0, "val_loss": 3.0}, json.loads(f'{{"flops": 2.0, "val_loss": {bad}}}')]
    with pytest.raises(InputError, match=r"not finite at flops=2"):
        curve(records)


@pytest.mark.parametrize("records", [[], [{"flops": 1.0, "loss": 2.0}], [{"val_loss": 2.0}]])
def test_curve_refuses_records_it_cannot_use(records):
    with pytest.raises(InputError) as error:
        curve(records)
    assert "\n" not in str(error.value)


def test_smooth_takes_out_a_spike_and_leaves_a_falling_curve():
    falling = np.linspace(5, 1, 21)
    spiked = falling.copy()
    spiked[10] = 50
    assert np.array_equal(smooth(falling, 5), falling[2:-2])
    assert np.abs(smooth(spiked, 5) - falling[2:-2]).max() < 0.5
    assert np.array_equal(smooth(spiked, 1), spiked)


@pytest.mark.parametrize("window", [0, -1, 2, 5])
def test_smooth_refuses_a_window_that_does_not_fit(window):
    with pytest.raises(InputError, match="window"):
        smooth(np.array([3.0, 2.0, 1.0]), window)


def test_cost_is_found_between_points_on_a_log_scale():
    run = Curve(np.array([1e3, 1e5]), np.array([4.0, 2.0]), tokens=np.array([10.0, 1000.0]))
    assert cost_to_reach(run, 3.0) == pytest.approx(1e4)
    assert cost_to_reach(run, 3.0, "tokens") == pytest.approx(100)
    assert cost_to_reach(run, 2.0) == pytest.approx(1e5)


def test_cost_from_a_point_that_was_free_is_found_on_a_plain_scale():
    assert cost_to_reach(Curve(np.array([0.0, 100.0]), np.array([4.0, 2.0])), 3.0) == pytest.approx(50)


def test_cost_is_that_of_the_first_crossing():
    run = Curve(np.array([1.0, 2.0, 3.0, 4.0]), np.array([4.0, 2.0, 5.0, 1.0]))
    assert 1 < cost_to_reach(run, 3.0) < 2


def test_cost_is_never_extrapolated():
    run = Curve(np.array([1.0, 2.0]), np.array([4.0, 3.0]))
    assert cost_to_reach(run, 2.999) is None
    assert cost_to_reach(run, 4.5) == 1.0


def test_cost_on_an_unknown_axis_names_the_known_ones():
    with pytest.raises(InputError, match="tokens"):
        cost_to_reach(Curve(np.array([1.0]), np.array([1.0])), 1.0, "token")


def test_the_papers_example_300B_against_194B_tokens():
    scratch = power_law(training_flops(7e9, np.array([50e9, 194e9, 300e9])))
    grown = power_law(training_flops(7e9, np.array([50e9, 194e9, 300e9])), factor=194 / 300)
    result = speedup(grown, scratch)
    assert result.reached and result.loss == scratch.loss[-1]
    assert result.speedup == pytest.approx(0.546, abs=5e-4)
    assert result.saved == pytest.approx(0.353, abs=5e-4)
    assert result.flops_grown == pytest.approx(training_flops(7e9, 194e9))
    assert result.flops_scratch == pytest.approx(training_flops(7e9, 300e9))


def test_a_grown_run_that_loses_is_reported_as_losing():
    flops = np.geomspace(1e15, 1e19, 60)
    result = speedup(power_law(flops, factor=1.25), power_law(flops))
    assert result.loss == pytest.approx(power_law(flops, 1.25).loss[-1])  # the worse of the two ends
    assert result.speedup == pytest.approx(1 / 1.25 - 1, rel=1e-2)
    assert result.saved == pytest.approx(-0.25, rel=2e-2)
    assert result.reached


def test_the_grown_run_pays_for_its_small_model_and_its_spike():
    scratch = Curve(np.array([1.0, 10.0, 20.0]), np.array([9.0, 4.0, 3.0]))
    grown = Curve(np.array([1.0, 5.0, 5.0, 10.0, 20.0]), np.array([9.0, 4.5, 6.0, 3.0, 2.0]))
    assert speedup(grown, scratch).speedup == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("loss", "who"),
    [(2.5, "the scratch run never reaches"), (1.0, "the grown run never reaches"), (5.0, "from its first measurement")],
)
def test_a_loss_outside_what_was_measured_gives_no_number(loss, who):
    scratch = Curve(np.array([1.0, 10.0]), np.array([4.0, 3.0]))
    grown = Curve(np.array([1.0, 10.0]), np.array([4.0, 2.0]))
    result = speedup(grown, scratch, loss=loss)
    assert not result.reached and result.speedup is None and result.saved is None and result.flops_grown is None
    assert who in result.reason and "\n" not in result.reason


def test_a_loss_inside_both_curves_is_compared_there():
    scratch = Curve(np.array([1e2, 1e4]), np.array([4.0, 2.0]))
    grown = Curve(np.array([1e2, 1e4]), np.array([4.0, 0.0]))
    assert speedup(grown, scratch, loss=3.0).speedup == pytest.approx(10**0.5 - 1)


def test_smoothing_recovers_the_speedup_from_noisy_curves():
    flops, rng = np.linspace(1e17, 1e19, 2001), np.random.default_rng(0)
    grown, scratch = power_law(flops, 0.8), power_law(flops)
    noisy = [Curve(c.flops, c.loss + rng.normal(0, 0.03, c.loss.shape)) for c in (grown, scratch)]
    clean = speedup(grown, scratch).speedup
    assert clean == pytest.approx(0.25, abs=1e-3)
    assert abs(speedup(*noisy, window=201).speedup - clean) < 0.05 < abs(speedup(*noisy).speedup - clean)


def test_smoothing_leaves_every_loss_at_its_own_cost():
    flops = np.geomspace(1e17, 1e19, 41)
    result = speedup(power_law(flops, 0.8), power_law(flops), window=9)
    assert result.loss == power_law(flops).loss[-5] and result.flops_scratch == pytest.approx(flops[-5])


def test_the_package_offers_the_function_of_the_same_name_as_its_module():
    assert laws.speedup is speedup and callable(laws.speedup)


def test_the_loss_at_a_budget_is_found_between_points_and_not_beyond_them():
    run = Curve(np.array([0.0, 1e3, 1e5]), np.array([9.0, 4.0, 2.0]))
    assert loss_at(run, 1e4) == pytest.approx(3.0) and loss_at(run, 1e5) == 2.0
    assert loss_at(run, 999.0) is None and loss_at(run, 1.01e5) is None
    assert cost_to_reach(run, loss_at(run, 5e4)) == pytest.approx(5e4)


def seeds_of(gains):
    flops = np.geomspace(1e15, 1e19, 60)
    return [power_law(flops, 1 / (1 + gain)) for gain in gains], [power_law(flops) for _ in gains]


def test_the_speedup_over_seeds_is_the_mean_ratio_with_students_interval():
    grown, scratch = seeds_of([0.32, 0.50, 0.56])
    found = speedup_over_seeds(grown, scratch)
    logs = np.log([1.32, 1.50, 1.56])
    half = 4.3027 * logs.std(ddof=1) / np.sqrt(3)  # Student's quantile for 2 degrees of freedom
    assert found.speedup.value == pytest.approx(np.exp(logs.mean()) - 1, rel=1e-2)
    assert found.speedup.low == pytest.approx(np.exp(logs.mean() - half) - 1, rel=2e-2)
    assert found.speedup.high == pytest.approx(np.exp(logs.mean() + half) - 1, rel=2e-2)
    assert found.saved.value == pytest.approx(1 - 1 / (1 + found.speedup.value))
    assert found.saved.high == pytest.approx(1 - 1 / (1 + found.speedup.high))
    assert [one.speedup for one in found.seeds] == pytest.approx([0.32, 0.50, 0.56], rel=1e-2)


def test_one_seed_has_no_interval():
    found = speedup_over_seeds(*seeds_of([0.3]))
    assert found.speedup.value == pytest.approx(0.3, rel=1e-2) and found.speedup.low is None
    assert "no interval" in found.reason


def test_a_seed_that_does_not_reach_the_loss_leaves_no_mean():
    grown, scratch = seeds_of([0.3, 0.3])
    worse = Curve(scratch[1].flops, scratch[1].loss + 1)
    found = speedup_over_seeds(grown, [scratch[0], worse], loss=float(scratch[0].loss[-1]))
    assert found.speedup is None and found.saved is None
    assert found.reason.startswith("not reached at 1 of 2 seeds: 1 (the scratch run never reaches")


def test_seeds_come_in_pairs():
    grown, scratch = seeds_of([0.3, 0.3])
    with pytest.raises(InputError, match="got 2 and 1"):
        speedup_over_seeds(grown, scratch[:1])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([], 0),
        ([0, 0], 1),
        ([0.0, 1.0, 1.04], 2),
        ([3, 1, 3], 2),
        ([0, 0, 1, 2], 3),
        (np.geomspace(1e18, 1e21, 200), 100),
    ],
)
def test_values_apart_are_counted_and_zero_is_one_of_them(values, count):
    assert distinct(np.array(values)) == count
