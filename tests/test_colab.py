import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

import growlm

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
BADGE = "https://colab.research.google.com/github/growlm/growlm/blob/main/colab/"

of_notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def tagged(notebook, tag):
    """The one cell of a notebook that has a tag."""
    (cell,) = (cell for cell in notebook.cells if tag in cell.metadata.get("tags", []))
    return cell


def read(name):
    return nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)


@of_notebooks
def test_outputs_are_stripped(path):
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


@of_notebooks
def test_notebooks_hold_no_logic(path):
    """But for the cell that installs growlm, which is the same in all."""
    notebook = nbformat.read(path, as_version=4)
    sources = [
        cell.source for cell in notebook.cells if cell.cell_type == "code" and "install" not in str(cell.metadata)
    ]
    assert sources and notebook.cells[1] == tagged(notebook, "install")
    lines = [line for source in sources for line in source.splitlines()]
    assert not any(line.startswith(("def ", "class ", "for ", "while ", "if ")) for line in lines)
    assert tagged(notebook, "install").source == tagged(read("quickstart"), "install").source


def test_every_notebook_has_a_badge_in_itself_in_the_readme_and_in_the_guide():
    for path in NOTEBOOKS:
        said = [
            path.read_text(),
            *(page.read_text() for page in (ROOT / "README.md", ROOT / "docs" / "getting_started.md")),
        ]
        assert all(f"({BADGE}{path.name})" in text for text in said), path.name


@pytest.fixture
def install(monkeypatch):
    """Runs the first cell in a folder, where a driver may be; returns the commands that it starts."""

    def run(folder, installed=True, driver=None):
        source, commands = tagged(read("quickstart"), "install").source, []

        def start(command, check):
            commands.append([str(word) for word in command])
            if command[0] == "git":
                (Path(command[-1]) / "growlm").mkdir(parents=True)

        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(subprocess, "run", start)
        if not installed:
            monkeypatch.setattr("importlib.metadata.distributions", list)
        exec(source.replace("/dev/nvidiactl", str(driver)), {})
        return commands

    return run


@pytest.mark.parametrize("folder", [ROOT, ROOT / "colab"], ids=["root", "colab"])
def test_a_checkout_is_taken_as_it_is(install, folder):
    assert install(folder) == []
    assert Path.cwd() == ROOT and sys.path[0] == str(ROOT)


def test_a_checkout_in_which_growlm_is_not_installed_gets_that(install):
    (command,) = install(ROOT / "colab", installed=False)
    assert command[1:4] == ["-m", "pip", "install"] and command[-1] == f"{ROOT}[data]"


def test_elsewhere_growlm_is_fetched_and_installed_for_the_runtime(install, tmp_path):
    driver = tmp_path / "nvidiactl"
    driver.touch()
    fetch, command = install(tmp_path, installed=False, driver=driver)
    root = tmp_path / "growlm-main"
    assert fetch[:2] == ["git", "clone"] and fetch[-1] == str(root)
    assert command[-1] == f"{root}[cuda12,data]" and Path.cwd() == root


def executed(name, folder, parameters):
    """All cells by Run All, as started in a folder, with other parameters; every command must have returned 0."""
    notebook = read(name)
    tagged(notebook, "parameters").source = parameters
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.splitlines()[-1].startswith("main("):
            assert cell.outputs[-1]["data"]["text/plain"] == "0", cell
    return ["".join(output.get("text", "") for output in cell.get("outputs", ())) for cell in notebook.cells], [
        output for cell in notebook.cells for output in cell.get("outputs", ())
    ]


def has_picture(outputs):
    return any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_quickstart_runs_on_its_smallest_setting(tmp_path):
    texts, outputs = executed("quickstart", ROOT, f'variant, workdir = "tiny", {str(tmp_path / "run")!r}')
    assert any("scratch" in text and "At equal FLOPs" in text for text in texts) and has_picture(outputs)
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_a_checkpoint_grows_and_writes_what_it_wrote(tmp_path):
    config = growlm.ModelConfig(layers=2, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=24, vocab=256)
    growlm.write_model(tmp_path / "model", config, growlm.init(config, jax.random.key(0)))
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"tokenizer_class": "bytes"}')
    names = str(tmp_path / "model"), str(tmp_path / "grown"), "The sea"
    texts, outputs = executed("grow_a_checkpoint", ROOT / "colab", f"source, output, prompt = {names!r}")
    before, after = (text for text in texts if text.startswith("The sea"))
    assert before == after and growlm.read_config(tmp_path / "grown").layers == 4
    assert any("verified: " in output.get("data", {}).get("text/markdown", "") for output in outputs)


@pytest.mark.slow
def test_records_are_read(tmp_path):
    shutil.copytree(ROOT / "experiments" / "records", tmp_path / "records", ignore=shutil.ignore_patterns("*.png"))
    texts, outputs = executed("read_a_study", ROOT / "colab", f"records = {str(tmp_path / 'records')!r}")
    assert has_picture(outputs) and any("by YOUR law" in text for text in texts)
    assert os.fspath(tmp_path / "records" / "operators" / "report.html") in "".join(texts)
