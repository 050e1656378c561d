"""README and guide: what they name exists, their Python runs, and so do their commands, on tiny stand-ins."""

import dataclasses
import importlib
import json
import re
import shlex
import shutil
import sysconfig
import tomllib
from pathlib import Path

import jax
import pyarrow.parquet
import pytest
from hub_server import hub
from representatives import few

import growlm
from growlm.__main__ import main
from growlm.commands.dispatch import COMMANDS
from growlm.data import Request, prepare
from growlm.growth import LIFTS, OPERATORS, ORDERS, SHRINKS, options_of, resolve
from growlm.growth import operators as operators_file
from growlm.models import Kind
from growlm.training.config import build_run, load_config
from growlm.training.optimizer import OptimizerConfig
from growlm.training.overrides import literal
from growlm.training.schedules import ScheduleConfig
from growlm.training.settings import RunConfig, StageConfig
from growlm.training.variants import build_sweep

__all__ = ["hub"]  # a fixture

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOB = "https://github.com/growlm/growlm/blob/main/"

# Commands that need what a reader has to bring: they are checked and not run.
NOT_RUN = {"--tasks=paper": "benchmarks from the hub", "--config.mesh.": "several devices", "gs://my-": "a bucket"}
# TinyLlama's depth by 11, its width by 64; heads and keys as it has them.
TINY_LLAMA = growlm.ModelConfig(
    layers=2, embed=32, heads=32, kv_heads=4, head_dim=2, mlp=88, vocab=512, tie_embeddings=False
)
TINIER = {"--target.layers": 11, "--target.embed": 64, "--target.mlp": 64}
TINY_VOCAB = 300
RECORDS = {
    "arc_easy": {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    "piqa": {"goal": "Boil water.", "sol1": "Heat it.", "sol2": "Read to it.", "label": 0},
    "sciq": {"question": "What?", "support": "So.", "correct_answer": "x"} | {f"distractor{n}": "y" for n in (1, 2, 3)},
}

of_pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def shell_lines(page: Path) -> list[str]:
    """The lines of shell blocks and of indented ones, continued lines joined."""
    indented = re.findall(r"^    ((?:growlm|make|pip) .*)$", page.read_text(), re.MULTILINE)
    texts = [block.replace("\\\n", " ") for block in blocks(page, "bash")]
    return [line.strip() for text in texts for line in text.splitlines()] + indented


def commands(page: Path) -> list[list[str]]:
    """The growlm commands of a page, without `growlm`."""
    lines = [shlex.split(line, comments=True) for line in shell_lines(page)]
    return [words[1:] for words in lines if words[:1] == ["growlm"]]


def value(words: list[str], option: str) -> str | None:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{option}=")), None)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """What a reader has beside the checkout: novels, parquet, prompts, talks, a model called TinyLlama, benchmarks."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    shutil.copy(ROOT / "LICENSE", folder)
    (folder / "novels").mkdir()
    texts = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"), key=lambda path: path.stat().st_size)[-60:]
    for number, text in enumerate(texts):
        (folder / "novels" / f"{number:02}.txt").write_text(text.read_text(encoding="utf-8", errors="replace"))
    rows = [{"text": f"Page {number}.", "meta": {"source": ("news", "code")[number % 2]}} for number in range(200)]
    (folder / "web").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "web" / "a.parquet")
    (folder / "talks.jsonl").write_text(
        '{"prompt": "Why?", "response": "So."}\n{"prompt": "How?", "response": "Thus."}\n'
    )
    (folder / "prompts.txt").write_text("The sea\nThe king\n")
    (folder / "records").mkdir()
    for task, record in RECORDS.items():
        (folder / "records" / f"{task}.jsonl").write_text(json.dumps(record) + "\n")
    pytest.importorskip("tokenizers")
    shards = folder / "shards"
    prepare(Request((str(folder / "novels"),), shards, train_tokenizer="bpe", vocab=TINY_VOCAB, workers=1))
    params = growlm.init(TINY_LLAMA, jax.random.key(0))
    growlm.write_model(folder / "TinyLlama", TINY_LLAMA, params, carried=[shards / "tokenizer.json"])
    shutil.rmtree(shards)
    return folder


@pytest.fixture
def at_reader(reader, tmp_path, monkeypatch):
    """A copy of the reader's folder, as the working directory."""
    folder = shutil.copytree(reader, tmp_path / "reader")
    monkeypatch.chdir(folder)
    return folder


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_page_of_the_guide_is_in_its_navigation():
    named = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == [page.name for page in PAGES[1:]]


def anchors(page: Path) -> set[str]:
    text = page.read_text()
    for file in re.findall(r'^--8<-- "(.*):\w+"$', text, re.MULTILINE):
        text += (ROOT / file).read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@of_pages
def test_links_and_files_are_there(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if target.startswith(BLOB):
            path = ROOT / target.removeprefix(BLOB)
        elif "://" in target:
            continue
        else:
            path = page.parent / target if target else page
        assert path.is_file(), link
        assert not anchor or anchor in anchors(path), link
    for name in re.findall(r"`((?:colab|docs|experiments|growlm|tests)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


@of_pages
def test_targets_and_extras_are_there(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"make ([a-z][a-z-]*)(?= |;|`|\n)", "\n".join(shell_lines(page)))) <= set(targets)
    assert set(re.findall(r"-e '\.\[(\w+)\]'", page.read_text())) <= extras.keys()


def checked(words: list[str]) -> None:
    """Options exist, the config loads, and what is named in tables is there. The working directory is the reader's."""
    name, *options = words
    if name.startswith("--"):
        return
    assert name in COMMANDS, words
    command = importlib.import_module(f"growlm.commands.{name}")
    keys = getattr(command, "KEYS", {})
    for option in options:
        head = option.partition("=")[0]
        assert head in (*command.OPTIONS, "--help") or head.partition(".")[0] in keys, option
    settings = [word.removeprefix("--config.") for word in options if word.startswith("--config.")]
    if (config := value(options, "--config")) and Path(config.partition(":")[0]).exists():
        built = (build_sweep if name == "sweep" else build_run)(load_config(config, settings))
        run = value(options, "--run")
        assert run is None or run in built.run_folders
    if operator := value(options, "--operator"):
        pairs = [word.removeprefix("--option.").partition("=") for word in options if word.startswith("--option.")]
        resolve(operator, {key: literal(text) for key, _, text in pairs})
    if tasks := value(options, "--tasks"):
        pytest.importorskip("lm_eval")
        from growlm.evaluation.tasks import named

        assert named(tasks.split(","))


@of_pages
def test_commands_are_well_formed(page, at_reader):
    for words in commands(page):
        if words[0] == "plan":
            assert main(words) == 0
        checked(words)
    for span in re.findall(r"`growlm ([a-z]+ --[^`]+)`", page.read_text()):
        checked(shlex.split(span))


@pytest.mark.parametrize("page", few(PAGES, [ROOT / "README.md", ROOT / "docs/growth.md"]), ids=lambda page: page.stem)
def test_python_runs(page, at_reader):
    names = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)
        if "def get_config" in block:
            settings = names["get_config"]().to_dict()
            (build_sweep if "runs" in settings else build_run)(settings)


def made_tiny(words: list[str]) -> list[str]:
    """The command with an experiment's tiny variant, a tiny tokenizer, a width for the tiny checkpoint."""
    tiny = []
    for word in words:
        option, _, text = word.partition("=")
        if option == "--config":
            package = "growlm:" * text.startswith("growlm:")
            file, _, variant = text.removeprefix(package).partition(":")
            checkpoint = variant.partition(":")[2]
            word = f"--config={package}{file}:tiny" + (f":{checkpoint}" if checkpoint else "")
        if option == "--vocab":
            word = f"--vocab={TINY_VOCAB}"
        if option in TINIER and "--source=TinyLlama" in words:
            word = f"{option}={int(text) // TINIER[option]}"
        tiny.append(word.replace("=/shared/", "=shared/"))
    return tiny


@pytest.fixture(scope="module")
def trained():
    """Folders that pages have trained, by the command without the folder's name."""
    return {}


@pytest.mark.slow
@of_pages
def test_commands_run(page, at_reader, trained, hub):
    hub.commit_folder("TinyLlama/TinyLlama_v1.1", at_reader / "TinyLlama")
    for words in map(made_tiny, commands(page)):
        if any(part in word for word in words for part in NOT_RUN):
            continue
        if "--tasks" in " ".join(words):
            pytest.importorskip("lm_eval")
        workdir = Path(value(words, "--workdir") or "none").absolute()
        asked = tuple(word for word in words if not word.startswith("--workdir="))
        if asked in trained and not workdir.exists():
            shutil.copytree(trained[asked], workdir)  # started again, the command has nothing left to train
        assert main(words) == 0, words
        if words[0] in ("sweep", "train") and "--list" not in words:
            trained.setdefault(asked, workdir)


@pytest.mark.slow
def test_the_guide_builds(tmp_path, monkeypatch):
    build = pytest.importorskip("mkdocs.commands.build")
    pytest.importorskip("mkdocstrings")
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    build.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    assert "growlm.growth.grow" in (tmp_path / "site" / "api" / "index.html").read_text()


def fields(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize(
    ("kind", "config"),
    [("a stage", StageConfig), ("a schedule", ScheduleConfig), ("an optimizer", OptimizerConfig), ("a run", RunConfig)],
)
def test_all_settings_are_in_the_guide(kind, config):
    table = re.search(rf"^Of {kind}:\n\n(.*?)\n\n", (ROOT / "docs/runs.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert set(re.findall(r"`(\w+)`", " ".join(first))) == fields(config)


def test_all_of_growth_is_in_the_guide():
    text = (ROOT / "docs/growth.md").read_text()
    options = {option for operator in OPERATORS | SHRINKS for option in options_of(operator)}
    common = set(operators_file._COMMON_OPTIONS)
    for name in {*OPERATORS, *SHRINKS, *ORDERS, *LIFTS, *options, *common}:
        assert re.search(rf"`{name}\b", text), name
    assert all(re.search(rf"^\| {kind.name.lower()} \|", text, re.MULTILINE) for kind in Kind)
