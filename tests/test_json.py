"""--json: one document on the standard output, and nothing else there; what is said beside it goes to stderr."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from studies import write_sweep

import growlm
from growlm.__main__ import main
from growlm.files import as_json, read_json
from growlm.laws.kaplan import KaplanCurve

PUBLISHED = Path(__file__).resolve().parents[1] / "experiments" / "published"


def document(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@dataclasses.dataclass
class Found:
    path: Path
    values: np.ndarray
    samples: np.ndarray = dataclasses.field(repr=False)


def test_objects_are_written_by_their_fields():
    found = Found(Path("a/b"), np.array([1.5, math.nan]), np.zeros(1000))
    assert as_json({1: (found,)}) == {"1": [{"path": "a/b", "values": [1.5, None]}]}
    with pytest.raises(TypeError, match="function is not of JSON"):
        as_json(document)


def test_a_plan(capsys, tmp_path):
    asked = ("plan", "--params=7e9", "--tokens=3e11", "--chip=v5e", "--count=256", f"--write={tmp_path}/own.py")
    found = document(capsys, *asked)
    assert found["params"] == 7e9 and found["hardware"]["count"] == 256
    assert found["after"]["shape"]["layers"] == found["factor"] * found["before"]["shape"]["layers"]
    assert (tmp_path / "own.py").exists()


def test_a_report(capsys, tmp_path):
    folder = write_sweep(tmp_path / "s", {"scratch": 1.0, "grown": 0.7})
    found = document(capsys, "report", f"--workdir={folder}")
    (sweep,) = found["sweeps"]
    speedup = {row["run"]: row["speedup"] for row in sweep["rows"]}
    assert speedup["scratch"] is None and speedup["grown"] > 0.3
    assert "grown" in sweep["verdict"] and Path(found["report"]).exists()


def kaplan_runs(folder):
    """A table of runs on a curve of Kaplan's form."""
    law = KaplanCurve(alpha_N=0.09, N_c=2e13, alpha_S=0.6, S_c=3e3, alpha_B=0.19, B_star=3e8)
    axes = np.geomspace(1e6, 1e9, 4), np.geomspace(3e3, 3e5, 4), np.geomspace(3e4, 3e6, 4)
    lines = ["flops,loss,params,tokens,batch"]
    for params, steps, batch in itertools.product(*axes):
        tokens, loss = steps * batch, law.loss_at(params, steps, batch)
        lines.append(f"{6 * params * tokens},{loss},{params},{tokens},{batch}")
    (folder / "runs.csv").write_text("\n".join(lines))
    return folder / "runs.csv"


def test_a_multiplier(capsys):
    table = f"--runs={PUBLISHED}/fineweb_ladders.csv"
    columns = "--column.family=arm", "--column.flops=compute_flops", "--column.loss=val_loss"
    asked = "fit", "--law=multiplier", table, "--families=vanilla,untied_grow", *columns
    (found,) = document(capsys, *asked)["found"]
    assert found["baseline"]["name"] == "vanilla" and set(found["fits"]) >= {"constant"}


@pytest.mark.slow
def test_the_other_laws(capsys, tmp_path):
    timing = document(capsys, "fit", "--law=timing", f"--runs={PUBLISHED}/timing_cells.csv")
    assert timing["found"]["answers"] and {one["family"] for one in timing["found"]["fits"]} >= {"untied_grow"}
    runs = f"--runs={kaplan_runs(tmp_path)}"
    assert "alpha_N" in str(document(capsys, "fit", "--law=kaplan", runs)["found"])
    ((power, *_),) = document(capsys, "fit", "--law=scaling", runs)["found"].values()
    assert power["points"] == 64


@pytest.mark.slow
def test_an_evaluation(capsys, tmp_path):
    config = growlm.ModelConfig(layers=1, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=24, vocab=256)
    growlm.write_model(tmp_path / "model", config, growlm.init(config, jax.random.key(0)))
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"tokenizer_class": "bytes"}')
    (tmp_path / "text.txt").write_text("A text that is read.")
    found = document(
        capsys, "evaluate", f"--checkpoint={tmp_path}/model", f"--perplexity={tmp_path}/text.txt", "--length=16"
    )
    (path,) = (tmp_path / "model" / "evaluations").iterdir()
    assert found == read_json(path, "scores")
