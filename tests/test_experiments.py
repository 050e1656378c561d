"""The experiment files: all say what they cost and found; on a scale, every variant is a sweep of equal cost."""

import functools
import math
import re
import runpy
import subprocess
from pathlib import Path

import pytest
from representatives import few

from growlm.errors import InputError
from growlm.growth import PRESETS
from growlm.models import parameter_count
from growlm.training import texts
from growlm.training.config import load_config
from growlm.training.recipe import SCALES
from growlm.training.sweep import plan_sweep
from growlm.training.variants import build_sweep

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
DOCSTRINGS = {path.stem: path.read_text().split('"""')[1] for path in sorted(EXPERIMENTS.glob("*.py"))}
# Those on a scale, which has the variants of SCALES, and on any text; capacity has its own tests.
NAMES = [name for name in DOCSTRINGS if re.search(r"\bscale\(\w+", (EXPERIMENTS / f"{name}.py").read_text())]
NAMES.remove("capacity")
# Novels and benchmarks that a test does not have.
ELSEWHERE = ("corpus=stdlib", "evaluation.tasks=()")
# Quickstart at 591a7b4: 2.6e13 FLOPs in 4 min 23 s.
CPU_RATE = 2.6e13 / 263


@pytest.fixture(autouse=True, scope="module")
def corpus_once():
    """The text of Python's library is read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "load_corpus", functools.cache(texts.load_corpus))
        yield


def planned(name, variant, *overrides):
    return plan_sweep(build_sweep(load_config(f"{EXPERIMENTS / name}.py:{variant}", [*ELSEWHERE, *overrides])))


@pytest.mark.parametrize("variant", few(SCALES, ["tiny"]))
@pytest.mark.parametrize("name", NAMES)
def test_every_run_costs_what_its_baseline_costs(name, variant):
    sweep = planned(name, variant)
    costs = {name: run.stages[-1].cost_at(run.stages[-1].last_step).flops for name, run in sweep.runs.items()}
    short = costs.pop("short", costs["scratch"] / 1.5)
    assert short == pytest.approx(costs["scratch"] / 1.5, rel=0.05 if variant == "tiny" else 0.002)
    assert costs == pytest.approx(dict.fromkeys(costs, costs["scratch"]), rel=0.05 if variant == "tiny" else 0.002)
    asked = {name.partition("@")[0] for name in sweep.runs}  # and not the tries of a search
    assert set(sweep.config.grown) | set(sweep.config.controls) | {"scratch"} == asked
    assert sweep.config.grown and (sweep.config.search or "scratch_tuned" in sweep.config.controls)


# The others have an architecture of their own, or other sizes after the variant's name.
@pytest.mark.parametrize(
    "name", few(sorted(set(NAMES) - {"experts", "growth_timing", "novels", "samba", "systems"}), ["operators"])
)
def test_an_experiment_stands_on_modern_settings_too(name):
    sweep = planned(name, "tiny_modern")
    stages = [stage for run in sweep.runs.values() for stage in run.stages]
    assert {stage.config.model.architecture.name for stage in stages} == {"modern"}
    assert {stage.config.optimizer.kind for stage in stages} == {"muon"}
    assert {stage.config.schedule.end_lr_ratio for stage in stages if stage.config.schedule.kind != "constant"} == {0.0}
    sizes = [parameter_count(planned(name, v).runs["scratch"].stages[-1].config.model) for v in ("tiny", "tiny_modern")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


def test_what_a_report_leaves_beside_kept_records_is_ignored_and_they_are_not():
    if not (EXPERIMENTS.parent / ".git").exists():
        pytest.skip("not in a checkout")
    drawn = [f"{where}/{name}" for where in ("x", "x/cpu-0") for name in ("report.html", "loss_flops.png", "loss.csv")]
    kept = [f"x/cpu-0/{name}" for name in ("metrics.csv", "sweep.json", "config.json")]
    paths = [f"experiments/records/{name}" for name in (*drawn, *kept)]
    command = ["git", "-C", EXPERIMENTS.parent, "check-ignore", "--no-index", *paths]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout.split() == paths[: len(drawn)]


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_on_two_cores_takes_less_than_an_hour(name):
    timing = ("cpu", "cpu_short", "cpu_narrow", "cpu_narrow_long", "cpu_wide")
    others = {"growth_timing": timing, "novels": ("cpu", "cpu_8k"), "overtrained": ("small",)}
    for variant in others.get(name, ("cpu",)):
        assert planned(name, variant).flops()[0] / CPU_RATE < 3600


@pytest.mark.parametrize("variant", ["tiny_narrow", "tiny_wide", "gpu_wide"])
def test_the_sizes_of_growth_timing_are_sweeps(variant):
    assert len(planned("growth_timing", variant).runs) == 11


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_the_docstring_says_command_cost_expectation_and_result(name):
    text = DOCSTRINGS[name]
    assert f"--config=experiments/{name}.py" in text
    assert "Cost" in text and "expected" in text and "Result" in text


def test_no_experiment_is_written_under_former_names(capsys):
    for name in DOCSTRINGS.keys() - {"continue_from_checkpoint"}:  # that takes a checkpoint, see test_init_from
        load_config(f"{EXPERIMENTS / name}.py:tiny", [])
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("name", "steps"), [("operators", 10), ("overtrained", 115)])
def test_the_lines_of_a_long_run_are_further_apart(name, steps):
    assert load_config(f"{EXPERIMENTS / name}.py:small", [])["log_every_steps"] == steps


def test_the_seed_is_a_config_key_and_changes_every_stage():
    hashes = [
        {
            stage.stage_hash
            for run in planned("growth_timing", "cpu", f"seed={seed}").runs.values()
            for stage in run.stages
        }
        for seed in (0, 1)
    ]
    assert len(hashes[0]) == len(hashes[1]) == 12 and not hashes[0] & hashes[1]


def test_direct_in_width_splits_unevenly_and_the_even_split_is_a_null_run():
    runs = planned("operators", "cpu").config.runs
    options = {name: runs[name].stages[-1].growth.options for name in ("direct_width", "direct_width_even")}
    assert options["direct_width"]["split_imbalance"] > 0 and not options["direct_width_even"]


def test_noise_has_the_papers_scale_and_its_copies_are_uneven_but_for_the_null_run():
    runs = planned("noise", "cpu").config.runs
    options = {name: run.stages[-1].growth.options for name, run in runs.items() if name[:5] in ("depth", "width")}
    assert not options.pop("width_even_0")
    assert {choice["noise_scale"] for choice in options.values()} == {"paper"}
    assert {name for name, choice in options.items() if "split_imbalance" in choice} == {
        n for n in options if "width" in n
    }


def test_growth_timings_share_one_base():
    sweep = planned("growth_timing", "cpu")
    assert len({run.stages[0].stage_hash for name, run in sweep.runs.items() if name.startswith("after")}) == 1


@pytest.mark.parametrize("rung", ["1", "2", "3", "4", "5", "1_search", "tiny"])
def test_the_arms_of_the_ladder_cost_the_same(rung):
    ladder, sweep = runpy.run_path(str(EXPERIMENTS / "ladder.py")), planned("ladder", rung)
    costs = {name: run.stages[-1].cost_at(run.stages[-1].last_step).flops for name, run in sweep.runs.items()}
    costs.pop("short", None)
    assert costs == pytest.approx(dict.fromkeys(costs, costs["scratch"]), rel=0.05 if rung == "tiny" else 2e-3)
    ends = {run.stages[-1].learning_rate_at(run.stages[-1].last_step) for run in sweep.runs.values()}
    assert max(ends) < 0.04 * max(
        rate for rungs in ladder["TRIED"].values() for losses in rungs for rate in losses
    )  # decayed to zero: what is left is the last step's


def test_the_rates_of_the_ladder_are_the_searched_ones_and_a_power_law_of_their_minima_beyond():
    ladder = runpy.run_path(str(EXPERIMENTS / "ladder.py"))

    def about(best, rates):
        """Losses that are lowest at that rate, on a parabola in its logarithm."""
        return {rate: 1.5 + 0.1 * math.log(rate / best) ** 2 for rate in rates}

    ladder["TRIED"]["grown"] = (about(0.012, (0.005, 0.01, 0.02)), about(0.035, (0.02, 0.04, 0.08)))
    assert [ladder["carried"]("grown", rung) for rung in "12"] == [0.01, 0.04]
    first, second, third = (ladder["_parameters"](ladder["_scales"](rung)[0]) for rung in "123")
    power = math.log(third / first) / math.log(second / first)
    assert ladder["carried"]("grown", "3") == pytest.approx(0.012 * (0.035 / 0.012) ** power)


def test_the_studys_queue_names_sweeps_that_can_be_planned():
    queue = runpy.run_path(str(EXPERIMENTS / "study" / "sweeps.py"))["QUEUE"]
    folders = [folder for row in queue for folder, _ in row.sweeps()]
    assert len(set(folders)) == len(folders)
    for row in queue:
        assert row.before or planned(row.config, row.variant).runs


def test_every_published_system_has_a_run_or_a_reason():
    systems = runpy.run_path(str(EXPERIMENTS / "systems.py"))
    looped = planned("systems", "cpu_looped").config
    runs = [*planned("systems", "cpu").config.grown, *looped.grown]
    assert sorted([*runs, *systems["ELSEWHERE"]]) == sorted(PRESETS)
    assert all(run.system == name for name, run in looped.runs.items() if name in looped.grown)


def test_each_looped_system_costs_what_its_own_target_does_from_scratch():
    sweep = planned("systems", "cpu_looped")
    costs = {name: run.stages[-1].cost_at(run.stages[-1].last_step).flops for name, run in sweep.runs.items()}
    for name in sweep.config.grown:
        scratch = "scratch" if name == "untied_grow" else f"scratch_{name}"
        assert costs[name] == pytest.approx(costs[scratch], rel=1e-3)
        target, grown = (sweep.runs[of].stages[-1].config for of in (scratch, name))
        assert target.model == grown.model and target.optimizer == grown.optimizer


def test_an_unknown_variant_is_a_line():
    for variant in ("cpy", "cpu_wider", "gpu_narrow"):
        with pytest.raises(InputError, match="variant must be one of"):
            load_config(f"{EXPERIMENTS / 'growth_timing'}.py:{variant}", [])
