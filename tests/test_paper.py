"""The paper's own sizes and settings, on machines that hold them; and its released checkpoints, by a stand-in."""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from records import PAGES, write_records
from test_docs import checked, commands

import growlm
from growlm.__main__ import main
from growlm.checked import CHECKSUMS
from growlm.commands.evaluate import open_checkpoint
from growlm.errors import InputError
from growlm.evaluation.tasks import PAPER
from growlm.laws.compute import CHIPS, GIB
from growlm.models import parameter_count
from growlm.training.config import load_config
from growlm.training.optimizer import OptimizerConfig
from growlm.training.sweep import plan_sweep
from growlm.training.variants import build_sweep

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "paper"
FILE = FOLDER / "gstack.py"
README = FOLDER / "README.md"
MODULE = runpy.run_path(str(FILE))
SIZES, MACHINES, UPDATE = (MODULE[name] for name in ("SIZES", "MACHINES", "UPDATE"))
ON_TPU = {name: machine for name, machine in MACHINES.items() if ":" in machine.chips}


def sweep_of(variant, *overrides):
    return build_sweep(load_config(f"{FILE}:{variant}", list(overrides)))


# --- settings


@pytest.mark.parametrize(
    ("name", "millions", "base_millions", "tokens", "peak_lr", "layers"),
    [
        ("410M", 373.9, 142.6, 750e9, 6e-4, (6, 24)),
        ("1.1B", 1364.3, 439.4, 100e9, 3e-4, (6, 24)),
        ("3B", 2397.5, 722.3, 300e9, 1.6e-4, (8, 32)),
        ("7B", 5933.1, 1679.9, 300e9, 1e-4, (8, 32)),
    ],
)
def test_the_settings_are_those_of_table_1_and_the_released_code(
    name, millions, base_millions, tokens, peak_lr, layers
):
    runs = sweep_of(f"{name}_v5p").runs
    (scratch,), (base, grown) = runs["scratch"].stages, runs["grown"].stages
    assert scratch.model == grown.model and scratch.schedule == grown.schedule
    assert [round(parameter_count(stage.model) / 1e6, 1) for stage in (base, grown)] == [base_millions, millions]
    assert (base.model.layers, grown.model.layers) == layers and 4 * layers[0] == layers[1]
    assert scratch.tokens == tokens and base.tokens == 5000 * 1024 * 2048 and 10e9 < base.tokens < 10.5e9
    for stage in (base, grown, scratch):
        assert (stage.batch, stage.length, stage.optimizer) == (1024, 2048, OptimizerConfig())
        schedule = stage.schedule
        assert (schedule.kind, schedule.end_lr_ratio, schedule.at_growth) == ("cosine", 0.1, "restart")
        assert (schedule.warmup_tokens, schedule.horizon_tokens) == (3000 * UPDATE, 300_000 * UPDATE)
    assert grown.schedule.peak_lr == peak_lr and base.schedule.peak_lr == pytest.approx(peak_lr / 0.3)
    growth = grown.growth.resolved
    assert (growth.operator, growth.options, growth.optimizer_state) == ("direct", {"order": "stack"}, "reset")
    optimizer = OptimizerConfig()
    constants = (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.weight_decay, optimizer.clip)
    assert constants == (0.9, 0.95, 1e-8, 0.1, 1.0)


@pytest.mark.parametrize("variant", MACHINES)
def test_a_machine_divides_the_batch(variant):
    chip = variant.partition("_")[2]
    machine, sweep = MACHINES[variant], sweep_of(variant)
    if variant in ON_TPU:
        assert machine.chips.startswith(f"{chip}:") and chip in CHIPS
        chips = int(np.prod([int(side) for side in machine.chips.partition(":")[2].split("x")]))
        assert chips == int(np.prod(list(machine.mesh.values())))
    else:
        nodes = int(machine.chips.split()[0])
        assert machine.mesh == {"data": 0, "fsdp": 8} and machine.chips.split(" of ")[1] == "8"
        chips = 8 * nodes
    for run in sweep.runs.values():
        assert run.corpus == "data/slimpajama" and run.dtype == "bfloat16" and run.remat == machine.remat
        assert run.evaluation.batch % chips == 0
        for stage in run.stages:
            assert stage.batch % (chips * stage.microbatches) == 0


@pytest.mark.parametrize("size", SIZES)
def test_both_runs_cost_the_same(size):
    for variant in (f"{size}_tiny", f"{size}_v5p"):
        sweep = plan_sweep(sweep_of(variant, "corpus=stdlib", "mesh.data=0", "mesh.fsdp=1"))
        costs = [run.stages[-1].cost_at(run.stages[-1].last_step).flops for run in sweep.runs.values()]
        assert costs[0] == pytest.approx(costs[1], rel=0.05 if "tiny" in variant else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1.1B", "410M", "3B", "tiny"])
def test_a_size_runs_as_tiny(size, tmp_path):
    variant = "tiny" if size == "tiny" else f"{size}_tiny"
    command = ["sweep", f"--config={FILE}:{variant}", f"--workdir={tmp_path}", "--run=grown"]
    assert main(command) == 0
    lines = tiny.read_lines(tmp_path / "grown" / "metrics.jsonl")
    assert {line["stage"] for line in lines} == {0, 1}
    assert np.isfinite(lines[-1]["val_loss"])


def test_an_unknown_variant_is_a_line():
    with pytest.raises(InputError, match="variant must be one of"):
        sweep_of("7B_v4")


# --- memory


def rows():
    """The table of README.md: variant -> (topology, GiB that a chip needs, share of its memory in percent)."""
    found = re.findall(r"^\| `(\S+)` \| `(\S+)` \|.*\| ([\d.]+) GiB \| (\d+) % \|$", README.read_text(), re.MULTILINE)
    return {variant: (topology, float(gib), int(share)) for variant, topology, gib, share in found}


def test_every_set_up_on_tpus_is_in_the_table_and_fits():
    assert {name: topology for name, (topology, _, _) in rows().items()} == {
        name: machine.chips for name, machine in ON_TPU.items()
    }
    for topology, gib, share in rows().values():
        of_chip = CHIPS[topology.partition(":")[0]].hbm_bytes
        assert share == round(100 * gib * GIB / of_chip) < 95


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["410M_v5p", "7B_v6e"])
def test_the_step_of_the_smallest_and_the_largest_fits_a_chip(variant):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, which compiles for TPUs, is not installed: pip install 'growlm[tpu]'")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    script = ROOT / "experiments" / "benchmarks" / "tpu_compile.py"
    topology = f"--topology={ON_TPU[variant].chips}"
    command = [sys.executable, str(script), f"--config={FILE}:{variant}", topology, "--step_only"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["step"]["share_of_memory"] < 0.95
    # The plan has what lies in memory at a time, the table the whole of what the program was given, which is more.
    assert 0.6 < found["step"]["needed_bytes"] / GIB / rows()[variant][1] < 1.1


# --- the authors' checkpoints

# config.json of the released 3B, by field, with sizes of a stand-in.
RELEASED = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 40,
    "initializer_range": 0.02,
    "intermediate_size": 110,
    "max_position_embeddings": 64,
    "model_type": "llama",
    "num_attention_heads": 20,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",  # the released weights are float32, whatever this says
    "transformers_version": "4.31.0",
    "use_cache": True,
    "vocab_size": 320,
}


@pytest.fixture
def released(tmp_path):
    """A folder as the released ones are, but for the format of the weights, and its parameters."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "StackLLM"
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([PAGES], vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"])
    bpe.save(str(tmp_path / "tokenizer.json"))
    config = growlm.ModelConfig(
        layers=4, embed=40, heads=20, kv_heads=4, head_dim=2, mlp=110, vocab=320, tie_embeddings=False
    )
    params = growlm.init(config, jax.random.key(0))
    growlm.write_model(folder, config, params, carried=[tmp_path / "tokenizer.json"])
    settings = {"add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>"}
    for name, content in {"config": RELEASED, "tokenizer_config": settings, "vocab": bpe.get_vocab()}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / CHECKSUMS).unlink()  # growlm's own
    return folder, config, params


@pytest.mark.slow
def test_a_released_checkpoint_is_scored_on_the_papers_tasks(released, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="needs the extra eval: pip install growlm[eval]")
    folder, config, params = released
    model, _ = open_checkpoint(folder)
    assert (model.config, model.length, model.prefix, model.add_bos) == (config, 64, 1, True)
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    data = tmp_path / "data"
    data.mkdir()
    write_records(data, "sciq", "lambada_openai", "piqa", "winogrande", "logiqa", "arc_easy")
    (data / "arc_challenge.jsonl").write_text((data / "arc_easy.jsonl").read_text())
    (data / "wikitext.txt").write_text(PAGES)
    assert main(["evaluate", f"--checkpoint={folder}", "--tasks=paper", f"--data_dir={data}", "--dtype=bfloat16"]) == 0
    said = capsys.readouterr().out
    assert "average of the paper's 7 accuracies: acc 0." in said and "word_perplexity" in said
    (written,) = (folder / "evaluations").glob("results_*.json")
    assert set(tiny.read_json(written)["results"]) == set(PAPER)


def test_weights_as_they_were_released_are_refused_in_a_line(released, capsys):
    folder, _, _ = released
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert main(["evaluate", f"--checkpoint={folder}", f"--perplexity={ROOT / 'LICENSE'}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("growlm: ")]
    assert "pytorch_model.bin" in line and "safetensors" in line


def test_a_checkpoint_without_a_tokenizer_says_so(released, capsys):
    folder, _, _ = released
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink()
    assert main(["evaluate", f"--checkpoint={folder}", f"--perplexity={ROOT / 'LICENSE'}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("growlm: ")]
    assert "tokenizer" in line


# --- the page


def test_the_page_names_commands_that_exist_and_every_size(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = commands(README)
    assert {words[0] for words in found} == {"prepare", "sweep", "report", "evaluate"}
    for words in found:
        checked(words)
    assert all(size in README.read_text() for size in SIZES)
    text = FILE.read_text().split('"""')[1]
    assert "Cost" in text and "expected" in text and "Result" in text
