"""Published systems by name: shares, rates and FLOPs against examples worked out by hand, and a run from end to end."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny
from representatives import few

from growlm.errors import InputError
from growlm.growth import PRESETS, recipes
from growlm.models import parameter_count, parametrization, plain
from growlm.report.outcomes import outcome
from growlm.report.records import read
from growlm.training.config import build_run
from growlm.training.continuation import result_settings
from growlm.training.run import train
from growlm.training.saved import find_saved
from growlm.training.stages import resolve
from growlm.training.systems import written_out

# Its depth divides all schedules, its heads and widths halves and thirds.
LLAMA = {"layers": 12, "embed": 12, "heads": 6, "kv_heads": 6, "head_dim": 2, "mlp": 18, "vocab": 256}
MIXTURE = LLAMA | {"architecture": "mixtral", "layers": 2, "experts": 4, "experts_per_token": 2}
BATCH = 4 * 16
GUIDE = (Path(__file__).resolve().parents[1] / "docs/recipes.md").read_text()
ROUTED = {name for name, preset in PRESETS.items() if len(preset.experts(4)) > 1}


def target_of(name):
    preset = PRESETS[name]
    if preset.example is not None:
        return plain(preset.example)
    return MIXTURE if name in ROUTED else LLAMA | {"layers": 24} if name.startswith("partial") else LLAMA


def run_of(name, model=None, steps=400, schedule=None, **more):
    schedule = {"warmup_tokens": BATCH, "peak_lr": 0.01} | (schedule or {})
    stage = {"model": model or target_of(name), "tokens": steps * BATCH, "batch": 4, "length": 16, "schedule": schedule}
    return build_run({"system": name, "stages": [stage]} | more)


def stages_of(run):
    return resolve(written_out(run), "")


def steps_of(run):
    return [stage.steps for stage in stages_of(run)]


@pytest.mark.parametrize("name", PRESETS)
def test_every_system_costs_what_its_target_costs_to_within_a_batch(name):
    run = run_of(name)
    last = stages_of(run)[-1]
    scratch = resolve(dataclasses.replace(run, system=None), "")[0]
    short = scratch.cost_at(400).flops - last.cost_at(last.last_step).flops
    assert -1e-6 * scratch.cost_at(1).flops <= short < scratch.cost_at(1).flops
    assert last.config.model == scratch.config.model and last.number


def test_stackbert_by_hand():
    small, half, large = (parameter_count(build_run(run(layers)).stages[0].model) for layers in (3, 6, 12))
    # 50 : 70 : 280 steps at equal FLOPs: u (50 small + 70 half + 280 large) = 400 large.
    unit = 400 * large / (50 * small + 70 * half + 280 * large)
    first, second, third = steps_of(run_of("stackbert"))
    assert (first, second) == (round(50 * unit), round(70 * unit))
    assert third == (400 * large - first * small - second * half) // large
    assert first / third == pytest.approx(50 / 280, rel=0.02)


def run(layers):
    return {"stages": [{"model": LLAMA | {"layers": layers}, "tokens": BATCH, "batch": 4, "length": 16}]}


def test_budgets_of_midas_grow_with_the_stage():
    assert PRESETS["midas"].shares == (1, 2, 3, 4, 5, 6)
    shares = [stage.share for stage in PRESETS["midas"].stages(run_of("midas").stages[0].model)]
    assert shares == pytest.approx([number / 21 for number in range(1, 7)])
    steps = steps_of(run_of("midas"))
    assert steps[:5] == pytest.approx([number * steps[0] for number in range(1, 6)], abs=3)


def test_one_layer_grows_after_80_percent_of_the_steps_within_one_schedule():
    before, after = stages_of(run_of("one_layer", schedule={"kind": "cosine"}))
    steps = before.steps + after.steps
    assert before.steps == pytest.approx(0.8 * steps, abs=2)
    assert (after.schedule_start, before.horizon, after.horizon) == (0, steps * BATCH, steps * BATCH)
    grown_at = before.last_step
    assert before.learning_rate_at(grown_at) == after.learning_rate_at(grown_at + 1) == 0.01  # the stable phase
    assert before.learning_rate_at(1) == 0.01
    assert after.learning_rate_at(round(0.95 * steps)) == pytest.approx(0.005, rel=0.05)
    assert after.learning_rate_at(steps) == 0


def test_rates_of_stages_follow_the_target_as_the_row_says():
    constant, cosine = stages_of(run_of("g_stack"))
    assert (constant.config.schedule.kind, cosine.config.schedule.kind) == ("constant", "cosine")
    assert cosine.learning_rate_at(cosine.first_step + 1) == 0.01  # of a warm-up of one batch
    before, after = stages_of(run_of("msg", schedule={"warmup_tokens": 4 * BATCH}))
    assert before.learning_rate_at(1) == 0.0025  # MSG warms up once, and is back at the peak after growth
    assert after.learning_rate_at(after.first_step + 1) == pytest.approx(0.01, rel=1e-3)
    first, second, *_ = stages_of(run_of("mslt", schedule={"warmup_tokens": 4 * BATCH}))
    assert first.learning_rate_at(1) == second.learning_rate_at(second.first_step + 1) == 0.0025
    rates = [stage.learning_rate_at(stage.first_step + 1) for stage in stages_of(run_of("stackbert"))]
    assert rates == sorted(rates, reverse=True) and rates[0] == 0.01  # one fall through all stages


def test_sparkling_rises_anew_for_what_is_new_alone_and_keeps_its_heads():
    before, after = stages_of(run_of("sparkling"))
    assert before.config.model == dataclasses.replace(after.config.model, embed=6, mlp=9)
    assert after.config.schedule.at_growth == "continue" and after.config.schedule.rewarm == "new"
    assert after.config.schedule.rewarm_tokens == 40 * BATCH
    assert stages_of(run_of("untied_grow"))[1].config.schedule.rewarm == "all"


def test_mup_upscaling_trains_matrices_of_both_stages_at_the_rates_of_their_base():
    before, after = (stage.config.model for stage in stages_of(run_of("mup_upscaling")))
    assert before == dataclasses.replace(after, embed=6, heads=3, kv_heads=3, mlp=9)
    gate = after.architecture.weights["blocks/mlp/gate"]
    assert [parametrization.learning_rate(gate, model) for model in (before, after)] == [1.0, 0.5]


def test_what_a_growth_takes_follows_the_budget_and_is_paid_for():
    _, masked = stages_of(run_of("msg"))
    assert masked.growth.masks.tokens == 400 * BATCH // 10
    before, learned = stages_of(run_of("ligo"))
    assert learned.growth.learner.steps == 8  # 2 % of 400
    assert learned.first_cost.flops - before.cost_at(before.last_step).flops == pytest.approx(
        8 * (learned.cost_at(learned.last_step).flops - learned.first_cost.flops) / learned.steps
    )
    (_, own) = stages_of(run_of("ligo", system_options={"steps": 20}))
    assert own.growth.learner.steps == 20 and own.steps == learned.steps - 12


def test_the_stages_of_the_schedule_have_their_own_settings():
    mslt = stages_of(run_of("mslt"))
    assert [stage.config.frozen_layers for stage in mslt] == [0, 3, 6, 9, 0]
    two_stage = stages_of(run_of("bert2bert_two_stage"))
    assert [stage.config.submodel_layers for stage in two_stage] == [0, 4, 0]
    assert stages_of(run_of("llama_pro"))[1].config.train == "new"
    assert [stage.config.growth.resolved.optimizer_state for stage in stages_of(run_of("midas"))[1:]] == ["map"] * 5


def test_sub_models_cost_what_is_drawn_of_them():
    small, whole, last = steps_of(run_of("bert2bert_two_stage", steps=8000))
    assert (small / last, whole / last) == pytest.approx((2 / 7, 1 / 7), rel=0.015)


def test_stages_have_the_hashes_of_a_run_that_spells_them_out():
    run = run_of("stackbert", seed=7)
    spelled = build_run(json.loads(json.dumps(dataclasses.asdict(written_out(run)), default=vars)) | {"system": None})
    assert [stage.stage_hash for stage in resolve(spelled, "")] == [stage.stage_hash for stage in stages_of(run)]
    partial = [stages_of(run_of(name)) for name in PRESETS if name.startswith("partial")]
    assert len({first.stage_hash for first, _ in partial}) == 1 and len({last.stage_hash for _, last in partial}) == 8


def test_without_a_system_nothing_changes():
    plain_run = build_run(run(12))
    assert written_out(plain_run) is plain_run


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("stackbird", {}, r"system must be one of .* got 'stackbird'; did you mean 'stackbert'\?"),
        ("stackbert", {"model": LLAMA | {"layers": 6}}, "model.layers must be an integer in every stage"),
        ("sparse_upcycling", {"model": LLAMA}, "must have something to grow"),
        ("mup_upscaling", {"model": LLAMA}, "model.base_widths must be sizes of a base"),
        ("untied_grow", {"model": LLAMA}, "the architecture of preset 'untied_grow' must be looped, got 'llama'"),
        ("midas", {"steps": 5}, r"enough for a batch in each of the 6 stages of system 'midas', got 320"),
        ("ligo", {"system_options": {"stepps": 3}}, "stepps"),
        ("g_stack", {"schedule": {"at_growth": "continue"}}, "at_growth must be the system's, and unset"),
    ],
)
def test_bad_input_is_one_line(name, more, message):
    with pytest.raises(InputError, match=message) as error:
        written_out(run_of(name, more.pop("model", LLAMA), **more))
    assert "\n" not in str(error.value)


def test_a_system_has_one_stage_and_options_need_a_system():
    stage = run_of("g_stack").stages[0]
    grown = dataclasses.replace(stage, growth=written_out(run_of("g_stack")).stages[1].growth)
    for stages, message in (((stage, grown), "stages must be one"), ((grown,), "takes no growth")):
        with pytest.raises(InputError, match=message):
            build_run({"system": "g_stack", "stages": stages})
    with pytest.raises(InputError, match=r"stages\[0\].frozen_layers must be unset with system 'g_stack', got 2"):
        build_run({"system": "g_stack", "stages": (dataclasses.replace(stage, frozen_layers=2),)})
    with pytest.raises(InputError, match=r"system_options must be \{\} without a system"):
        build_run({"system_options": {"steps": 3}, "stages": (stage,)})


def test_a_folder_goes_on_only_with_the_same_stages():
    settings = {"system": "midas", "stages": [{"model": LLAMA, "tokens": 400 * BATCH, "batch": 4, "length": 16}]}
    found = result_settings(settings)
    assert len(found["stages"]) == 6 and found["system"] is None
    assert result_settings(settings | {"system": "lidas"}) != found


@pytest.mark.parametrize(
    ("system", "steps", "stages"), few([("stackbert", 8, 3), ("zero_layer", 4, 2)], [("stackbert", 8, 3)])
)
def test_a_system_is_trained_stopped_and_resumed_from_end_to_end(tmp_path, system, steps, stages):
    """Stopped after every step, it ends as the run does that spells its stages out and was never stopped."""
    sizes = {"batch": tiny.BATCH, "length": tiny.LENGTH}
    stage = {"model": tiny.MODEL | {"layers": 4}, "tokens": steps * tiny.STEP, **sizes}
    config = build_run(tiny.run(tiny.write_corpus(tmp_path), stage, system=system))
    assert tiny.train_in_parts(config, tmp_path / "named") >= steps
    train(written_out(config), tmp_path / "spelled")
    assert tiny.timeless(tmp_path / "named") == tiny.timeless(tmp_path / "spelled")
    last = max(tiny.checkpoints(tmp_path / "spelled"))
    found = [tiny.read_checkpoint(tiny.checkpoints(tmp_path / name)[last]) for name in ("named", "spelled")]
    tiny.assert_same_arrays(*found)

    kept = tiny.read_json(tmp_path / "named/config.json")
    assert kept["system"] == system and [stage["model"]["layers"] for stage in kept["stages"]] == [4]
    assert find_saved(tmp_path / "named").model.layers == 4
    (study,) = read(tmp_path / "named").runs.values()
    assert outcome("named", study).stages == stages
    with pytest.raises(InputError, match="which holds a different run"):
        train(dataclasses.replace(config, seed=1), tmp_path / "named")


@pytest.mark.parametrize(
    ("name", "head", "rows"),
    [("the systems", recipes.COLUMNS, recipes.rows), ("what is whose", recipes.WHOSE, recipes.whose)],
)
def test_the_guide_has_the_tables(name, head, rows):
    """To bring it up to date: write these lines between the markers of docs/recipes.md."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows())]
    begin, end = (GUIDE.index(f"<!-- {word} of {name} -->") for word in ("begin", "end"))
    assert GUIDE[begin:end].splitlines()[1:] == lines, "\n".join(lines)
