"""`growlm sample`: what it writes is what `generate` gives, for prompts of all kinds and line by line; bad input."""

import io
import json
import threading

import jax
import numpy as np
import pytest
import tiny

from growlm.__main__ import main
from growlm.commands.evaluate import open_checkpoint
from growlm.errors import InputError
from growlm.evaluation import Sampling, generate
from growlm.evaluation.sampling import _likeliest
from growlm.training.run import train

PROMPTS = ["a model that", "", "layer by layer and then"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(tiny.run_config(tiny.write_corpus(folder), tiny.stage(12)), folder / "work", threading.Event())
    return folder / "work"


def sampled(capsys, workdir, *options):
    assert main(["sample", f"--checkpoint={workdir}", "--max_tokens=9", *options]) == 0
    return capsys.readouterr().out


def test_prompts_of_the_command_line_and_of_a_file(workdir, tmp_path, capsys):
    model, _ = open_checkpoint(workdir)
    greedy = generate(model, PROMPTS, Sampling(most=9))
    assert sampled(capsys, workdir, "--prompt=a model that", "--temperature=0") == f"{PROMPTS[0]}{greedy[0]}\n"
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[1:]) + "\n")
    options = f"--prompts={tmp_path}/prompts.txt", "--prompt=a model that", "--samples=2", "--seed=5", "--top_k=20"
    said = [json.loads(line) for line in sampled(capsys, workdir, *options, "--json").splitlines()]
    contexts = [prompt for prompt in PROMPTS for _ in range(2)]
    drawn = generate(model, contexts, Sampling(most=9, temperature=0.7, seed=5, top_k=20))
    expected = [{"prompt": p, "sample": i % 2, "text": t} for i, (p, t) in enumerate(zip(contexts, drawn, strict=True))]
    assert said == expected and drawn[0] != drawn[1]
    titles = [line for line in sampled(capsys, workdir, *options).splitlines() if line.startswith("==")]
    assert titles == [f"== prompt {number}, sample {sample}" for number in (1, 2, 3) for sample in (1, 2)]


def test_a_second_start_compiles_nothing(own_programs, workdir, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = "--prompt=a model that", "--seed=3"
    jax.clear_caches()
    text = sampled(capsys, workdir, *options)
    programs = {path: path.stat().st_mtime_ns for path in (tmp_path / "growlm" / "compiled").glob("*-cache")}
    jax.clear_caches()
    assert sampled(capsys, workdir, *options) == text and any("go_on" in path.name for path in programs)
    assert programs == {path: path.stat().st_mtime_ns for path in (tmp_path / "growlm" / "compiled").glob("*-cache")}


def test_a_text_of_a_batch_is_that_of_the_text_alone(workdir):
    """Whatever the rows: a draw depends on the seed, the text's number and its place."""
    model, _ = open_checkpoint(workdir)
    sampling = Sampling(most=40, temperature=1.0, seed=1)  # beyond the model's 16 positions
    texts = generate(model, PROMPTS, sampling)
    assert texts == generate(model, PROMPTS, sampling, 1) and len(set(texts)) == 3


def test_only_the_likeliest_are_drawn(workdir):
    model, _ = open_checkpoint(workdir)
    greedy = generate(model, PROMPTS, Sampling(most=9))
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert generate(model, PROMPTS, Sampling(**{"most": 9, "temperature": 1.0} | options)) == greedy
    rows = np.random.default_rng(0).normal(size=(7, 30)).astype(np.float32) * 3
    top_p, top_k = np.float32([0.5, 0.9, 1, 1, 0.3, 0.99, 1e-9]), np.array([0, 0, 5, 0, 2, 9, 0])
    kept = np.isfinite(np.asarray(jax.jit(_likeliest)(rows, top_p[:, None], top_k[:, None])))
    for row, p, k, found in zip(rows, top_p, top_k, kept, strict=True):
        order = np.argsort(-row)[: k or None]
        share = np.exp(row[order]) / np.exp(row[order]).sum()
        count = next((n for n in range(1, len(order)) if share[:n].sum() >= p), len(order))
        assert set(order[:count]) == set(np.flatnonzero(found))


def test_lines_of_the_standard_input(workdir, capsys, monkeypatch):
    model, _ = open_checkpoint(workdir)
    monkeypatch.setattr("sys.stdin", io.StringIO("a model that\n\nlayer by\n"))
    texts = [generate(model, [line], Sampling(most=9))[0] for line in ("a model that", "layer by")]
    assert sampled(capsys, workdir, "--temperature=0") == f"a model that{texts[0]}\nlayer by{texts[1]}\n"


def test_the_seeds_of_lines_go_on_at_0_after_the_largest(workdir, capsys, monkeypatch):
    model, _ = open_checkpoint(workdir)
    monkeypatch.setattr("sys.stdin", io.StringIO("a model that\na model that\n"))
    texts = [generate(model, ["a model that"], Sampling(most=9, temperature=9, seed=s))[0] for s in (2**31 - 1, 0)]
    said = sampled(capsys, workdir, "--temperature=9", f"--seed={2**31 - 1}", "--json")
    assert said == "".join(f"a model that{text}\n" for text in texts) and texts[0] != texts[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--temperature=-1"], "temperature must be >= 0"),
        (["--top_p=0"], "top_p must be above 0 and at most 1, got 0.0"),
        (["--top_k=-1"], "top_k must be >= 0 and <= 2147483647, got -1"),
        (["--top_k=99999999999999999999"], "top_k must be >= 0 and <= 2147483647, got 99999999999999999999"),
        (["--seed=4294967296"], "seed must be >= 0 and <= 2147483647, got 4294967296"),
        (["--length=0"], "length must be >= 1, got 0"),
        (["--samples=0"], "--samples must be >= 1, got 0"),
        (["--max_tokens=0"], "most tokens to generate must be >= 1, got 0"),
        (["--prompts=gone.txt"], "gone.txt cannot be read"),
        (["--system=Be brief."], "--system is of conversations"),
        (["--chekpoint=a"], "did you mean '--checkpoint'"),
    ],
)
def test_bad_input_is_one_line(workdir, capsys, options, says):
    assert main(["sample", f"--checkpoint={workdir}", "--prompt=a", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_wrong_sampling():
    with pytest.raises(InputError, match="seed must be >= 0"):
        Sampling(seed=-1)
