"""What is read off compiled programs, on programs written for the purpose; and the benchmark, where libtpu is there."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from growlm.errors import InputError
from growlm.laws.compute import chip_of
from growlm.training.mesh import MeshConfig, make_mesh

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments" / "benchmarks"

PROGRAM = """\
HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (input: bf16[64,8]) -> bf16[16,8] {
  %input = bf16[64,8]{1,0} parameter(0)
  %all-reduce.1 = bf16[64,8]{1,0} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = bf16[16,8]{1,0} dynamic-slice(%all-reduce.1, %c, %c), dynamic_slice_sizes={16,8}
}

%inner_condition (p: (u32[], bf16[4])) -> pred[] {
  %constant.1 = u32[] constant(5)
  ROOT %lt = pred[] compare(%i, %constant.1), direction=LT
}

%inner_body (p: (u32[], bf16[4])) -> (u32[], bf16[4]) {
  %constant.2 = u32[] constant(7)
  %permuted = bf16[4]{0:T(8,128)(2,1)} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %tuple = (u32[], bf16[4]) tuple(%i, %permuted)
}

%condition (p: (s32[], bf16[4])) -> pred[] {
  %constant.3 = s32[]{:T(128)} constant(3)
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %constant.3), direction=LT
}

%body (p: (s32[], bf16[4])) -> (s32[], bf16[4]) {
  %gathered = bf16[2,8]{1,0} all-gather(%w), replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4] {'axis_1'}
  %fusion = bf16[16,8]{1,0} fusion(%dw), kind=kCustom, calls=%all-reduce-scatter.1
  %while.2 = (u32[], bf16[4]) while(%tuple.1), condition=%inner_condition, body=%inner_body
  ROOT %tuple.3 = (s32[], bf16[4]) tuple(%i, %x)
}

ENTRY %main (p: f32[]) -> f32[] {
  %while.1 = (s32[], bf16[4]) while(%tuple.0), condition=%condition, body=%body, metadata={op_name="while"}
  %both = (f32[10]{0}, f32[]) all-reduce(%a, %b), replica_groups={{0,1},{2,3}}, to_apply=%add
  %moved = s32[6,2]{1,0} all-to-all(%ids), replica_groups=[2,3]<=[3,2]T(1,0), dimensions={0}
  %parts = f32[5]{0} reduce-scatter(%g), replica_groups={{0,1}}, dimensions={0}, to_apply=%add
  ROOT %result = f32[] copy(%loss)
}
"""


@pytest.fixture
def module(monkeypatch):
    """A file of the benchmarks, by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def collectives(module):
    return module("collectives")


def test_what_is_sent_is_counted_by_kind_as_often_as_loops_run(collectives):
    assert collectives.sent(PROGRAM) == {
        "all-gather": (3, 3 * 32 / 2),
        "all-reduce": (1, 2 * 44 / 2),
        "reduce-scatter": (4, 3 * 1024 * 3 / 4 + 2 * 20 / 2),
        "all-to-all": (1, 48 * 2 / 3),
        "collective-permute": (15, 15 * 8),
    }


def test_what_cannot_be_counted_is_an_error(collectives):
    with pytest.raises(RuntimeError, match="how often"):
        collectives.sent(PROGRAM.replace("constant(5)", "parameter(0)"))
    with pytest.raises(RuntimeError, match="which devices take part"):
        collectives.sent(PROGRAM.replace("replica_groups={{0,1,2,3}}", "replica_groups=new"))
    assert collectives.sent("HloModule m\n\nENTRY %main (p: f32[]) -> f32[] {\n  ROOT %x = f32[] copy(%p)\n}\n") == {}


@pytest.fixture
def chips_of(module, monkeypatch):
    """The chips of a topology."""
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1")
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, which compiles for TPUs, is not installed: pip install 'growlm[tpu]'")
    return module("tpu_compile").chips_of


@pytest.mark.slow
def test_axes_of_a_mesh_lie_along_axes_of_the_torus_or_parts_of_them(chips_of):
    chips = chips_of("v5p:4x4x4")
    rows = make_mesh(MeshConfig(4, 16), chips).devices[:, :, 0]
    assert [len({chip.coords[axis] for chip in rows[0]}) for axis in range(3)].count(4) == 2  # a plane
    parts = make_mesh(MeshConfig(8, 8), chips).devices
    assert len({chip.id for chip in parts.flat}) == 64
    with pytest.raises(InputError, match=r"mesh must be over all 64 devices, got .data 3 x fsdp 16 x tensor 1 = 48"):
        make_mesh(MeshConfig(3, 16), chips)


@pytest.mark.slow
def test_only_data_goes_over_slices(chips_of):
    chips_of("v5e:2x2")  # sets up the compiler
    from jax.experimental import topologies

    pair = topologies.get_topology_desc("v5e:2x2", platform="tpu", num_slices=2).devices
    rows = make_mesh(MeshConfig(2, 2, 2), pair).devices
    assert [{chip.slice_index for chip in row.flat} for row in rows] == [{0}, {1}]
    with pytest.raises(InputError, match=r"mesh\.data must be a multiple of the 2 slices of TPUs, got 1"):
        make_mesh(MeshConfig(1, 8), pair)


@pytest.fixture(scope="module")
def tiny():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, which compiles for TPUs, is not installed: pip install 'growlm[tpu]'")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, str(FOLDER / "tpu_compile.py"), "--setup=tiny"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_train_step_compiles_for_four_chips(tiny):
    """fsdp gathers weights and scatters gradients in every layer, tensor sums what the parts of a layer give."""
    step, per_layer = tiny["step"], tiny["model"]["layers"] * tiny["microbatches"]
    assert (tiny["chip"], tiny["chips"]) == ("v5e", 4)
    assert step["sent"]["all-gather"]["times"] >= 7 * per_layer
    assert step["sent"]["reduce-scatter"]["times"] + step["sent"]["all-reduce"]["times"] >= 9 * per_layer
    assert 0 < step["state_bytes"] < step["needed_bytes"] < 2**26


@pytest.mark.slow
def test_a_growth_in_depth_compiles_and_sends_nothing(tiny):
    assert tiny["growth"]["sent"] == {}
    assert tiny["growth"]["temporary_bytes"] < 0.1 * tiny["growth"]["state_bytes"]  # the plan has 1 MB of its own


@pytest.mark.slow
def test_the_estimate_is_one_of_a_chip_that_works(tiny):
    estimate = tiny["estimate"]
    assert 0 < estimate["mfu_none_hidden"] < estimate["mfu_all_hidden"] < 1
    assert 1e-5 < estimate["compute_seconds"] < 1e-2


@pytest.mark.slow
def test_what_a_layer_computes_twice_is_counted(module, chips_of):
    benchmark = module("tpu_compile")
    setup = benchmark.SETUPS["tiny"]
    chip = chips_of(setup.topology)[0]

    def of_layer(remat):
        without, one = (benchmark.costs(setup, layers, chip, rows=1, remat=remat)["flops"] for layers in (0, 1))
        return one - without

    assert 1.2 < of_layer("full") / of_layer("none") < 1.5  # forward again: a third of forward and backward


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--setup=2B"], ("'2B'", "1.1B, 3B, 70B", "tiny")),
        (["--mesh=1,2"], ("1,2", "1,16,1")),
        ([f"--config={ROOT}/experiments/paper/gstack.py:7B_v5p"], ("--config needs --topology", "v5p:4x4x4")),
        ([f"--config={ROOT}/experiments/paper/gstack.py:8B", "--topology=v5e:2x2"], ("variant must be one of", "'8B'")),
        (["--batch=many"], ("many", "positive integer")),
        (["--setup=tiny", "--mesh=1,3,1"], ("1 x fsdp 3", "over all 4 devices")),
        (["--setup=tiny", "--batch=9"], ("9 in 2 microbatches", "multiples of 2")),
        (["--setup=tiny", "--topology=v5e:0x2"], ("v5e:0x2", "two or three sizes")),
        (["--setup=tiny", "--topology=v5e"], ("'v5e'", "such as v5e:4x8")),
        (["--setup=tiny", "--topology=v9z:2x2"], ("v9z:2x2",)),
    ],
)
def test_bad_input_is_one_line(module, arguments, words, monkeypatch, capfd):
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1")
    if importlib.util.find_spec("libtpu") is None and arguments[0] == "--setup=tiny":
        words = ("libtpu", "growlm[tpu]")
    assert module("tpu_compile").main(arguments) == 2
    out, err = capfd.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("tpu_compile:")]  # libtpu has things to say too
    assert not out
    assert all(word in line for word in words), line


OPERATIONS = """\
HloModule jit_loss

%inside (p: f32[]) -> f32[] {
  ROOT %counted_by_its_fusion = f32[] add(%p, %p), backend_config={"estimated_cycles":"3000000000"}
}

ENTRY %main (x: bf16[8192,2048]) -> f32[] {
  %x = bf16[8192,2048]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %fusion.1 = bf16[8,4]{1,0} fusion(%x), backend_config={"estimated_cycles":"1500000","iteration_bounds":["2","8"]}
  %fusion.2 = bf16[8,4]{1,0} fusion(%x), backend_config={"estimated_cycles":"1500000","iteration_bounds":["2","8","4",\
"40"],"mask_aggregator_config":{"mask_dim_to_iteration_index":["1","3"],"iteration_skipper_mode":"ITERATION_SKIPPER_MODE_GROUP_STARTS"}}
  %gather.1 = (bf16[16384,2048]{1,0}, s32[]) fusion(%x, %fusion.1), kind=kCustom
  %gmm.1 = bf16[8,4]{1,0} custom-call(%fusion.2), custom_call_target="tpu_custom_call"
  ROOT %said = f32[] bitcast(%gmm.1)
}
"""


def test_operations_take_their_cycles_or_the_time_of_their_bytes_or_of_their_tiles(module):
    benchmark = module("experts_tpu")
    rows = 16384
    found = benchmark.expected(OPERATIONS, experts=8, assignments=rows, flops=2e9, peak=1e12)
    ran = 47 / 320  # of 8 groups with 40 chunks each: every group shares one with the next
    gathered = ((8192 + rows) * 2048 * 2 + 4 + 64) / 819e9
    assert found == pytest.approx(1e-3 * (1 + ran) + gathered + 2e-3 * (1 + 7 * 512 / rows), rel=1e-9)
    loop = OPERATIONS.replace("bitcast(%gmm.1)", "bitcast(%l)\n  %l = f32[999999] while(%x), body=%inside")
    with pytest.raises(ValueError, match=r"a loop .* got l with 3999996 bytes"):
        benchmark.expected(loop, experts=8, assignments=rows, flops=2e9, peak=1e12)


def test_the_plan_of_memory_is_read_by_its_space(module):
    report = "Memory Space: {} (color={})\nTotal bytes: {} (1GiB)\n  cumulative_size; size\n\n"
    spaces = [("vmem", 1, 7), ("default", 0, 25008788672), ("smem", 4, 8)]
    assert module("tpu_compile").total_bytes("".join(report.format(*space) for space in spaces)) == 25008788672


@pytest.mark.parametrize(("needed", "fits"), [(2**34, True), (2**34 + 1, False)])
def test_the_compiler_is_ended_once_it_has_planned_and_what_is_too_much_does_not_fit(module, monkeypatch, needed, fits):
    benchmark, ended = module("tpu_compile"), []

    class Compiler:
        def __init__(self, target, args, daemon):
            self.folder = Path(args[2])

        def start(self):
            (self.folder / "state").write_text("1000")
            (self.folder / f"m.0001.after_{benchmark.PASS}.before_it.txt").write_text(PROGRAM)
            report = f"Memory Space: default (color=0)\nTotal bytes: {needed} (16GiB)\n"
            (self.folder / f"m{benchmark.REPORT}").write_text(report)

        def is_alive(self):
            return not ended

        def kill(self):
            ended.append(True)

        def join(self):
            assert ended

    monkeypatch.setattr(benchmark.multiprocessing, "get_context", lambda how: SimpleNamespace(Process=Compiler))
    found = benchmark.planned(benchmark.step_of, benchmark.SETUPS["tiny"], chip_of("TPU v5e"))
    if fits:
        assert (found["state_bytes"], found["needed_bytes"], found["share_of_memory"]) == (1000, needed, 1)
    else:
        assert found == {"error": "Used 16.0 of 16 GiB"}


def answers(setup):
    """What a compiler might say: with fsdp over more chips it sends more, with remat none it needs too much."""
    if setup.remat == "none":
        return {"chip": "v5e", "chips": 4, "step": {"error": "Used 17G of 16G hbm"}}
    program = {"state_bytes": 1, "temporary_bytes": 1, "needed_bytes": 2, "share_of_memory": 0.5, "sent": {}}
    program["plan_seconds"] = 1.0
    mfu = {"mfu_all_hidden": 0.9, "mfu_none_hidden": 0.8 / setup.mesh.fsdp}
    return {
        "chip": "v5e",
        "chips": 4,
        "step": program,
        "estimate": {"compute_seconds": 1.0, "send_seconds": 0.5, **mfu},
    }


def test_a_search_asks_for_every_combination_and_says_the_best_of_what_fits(module, monkeypatch, capsys):
    benchmark, grown = module("tpu_compile"), []
    monkeypatch.setattr(benchmark, "place", lambda setup: None)
    monkeypatch.setattr(benchmark, "ask", lambda setup, step_only: answers(setup))
    monkeypatch.setattr(
        benchmark, "ask_growth", lambda setup: grown.append(setup) or {"growth": answers(setup)["step"]}
    )
    tried = ["--mesh=1,4,1", "--mesh=2,2,1", "--remat=none", "--remat=full", "--microbatches=1", "--microbatches=2"]
    assert benchmark.main(["--setup=tiny", *tried]) == 0
    printed = capsys.readouterr().out.splitlines()
    begins = next(number for number, line in enumerate(printed) if line.startswith("data, fsdp, tensor"))
    rows = [line.split()[:5] for line in printed[begins + 2 : begins + 10]]
    assert [(row[1], row[3], row[4]) for row in rows[:4]] == [
        (fsdp, "full", microbatches) for fsdp in ("2,", "4,") for microbatches in "12"
    ]
    assert [
        (row[3], "does not fit" in line) for row, line in zip(rows[4:], printed[begins + 6 :][:4], strict=True)
    ] == [("none", True)] * 4
    assert [(setup.mesh.fsdp, setup.remat, setup.microbatches) for setup in grown] == [(2, "full", 1)]
    assert sum(line.startswith("{") for line in printed) == 9 and "growth" in json.loads(printed[-1])


def test_a_search_without_estimates_says_memory_and_what_is_sent(module, monkeypatch, capsys):
    benchmark = module("tpu_compile")
    monkeypatch.setattr(benchmark, "place", lambda setup: None)
    monkeypatch.setattr(
        benchmark, "ask", lambda setup, step_only: {k: v for k, v in answers(setup).items() if k != "estimate"}
    )
    assert benchmark.main(["--setup=tiny", "--mesh=1,4,1", "--mesh=2,2,1", "--remat=full", "--step_only"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [(row[1], row[5:]) for row in rows] == [(fsdp, ["50%", "0", "GB", "-", "-", "-"]) for fsdp in ("4,", "2,")]
