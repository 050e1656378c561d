"""Benchmarks: the harness's numbers on local records, the same as of its own backend, and the command."""

import dataclasses
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from unittest.mock import MagicMock

import jax
import numpy as np
import pytest
from representatives import few

pytest.importorskip("lm_eval", reason="needs the extra eval: pip install growlm[eval]")
import hugging_face
import prepared
import tiny
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from records import PAGES, RECORDS, write_records

from growlm.__main__ import main
from growlm.commands.evaluate import open_checkpoint
from growlm.data import load_corpus, validation_batches
from growlm.data.tokenizers import load_tokenizer
from growlm.errors import InputError
from growlm.evaluation import LanguageModel, evaluate, paper_average, perplexity
from growlm.evaluation.harness import Adapter, encode_pairs
from growlm.evaluation.score import Window, score
from growlm.evaluation.tasks import PAPER, cut_pages, folders_by_name, load_index, manager, named
from growlm.models import ModelConfig, apply, init
from growlm.training.run import train
from growlm.training.saved import find_saved, read_state

SHARED = Path(os.environ.get("GROWLM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
DOCUMENTS = int(os.environ.get("GROWLM_TEST_DOCUMENTS", 12))  # 200 were tried by hand
MODEL = ModelConfig(layers=2, embed=32, heads=2, kv_heads=1, head_dim=16, mlp=48, vocab=256)


# --- the same numbers as the harness's own backend for Hugging Face models


@pytest.fixture(scope="module", params=few(["gpt-neox", "gpt-neox with BOS"], ["gpt-neox"]))
def folder(request, tmp_path_factory):
    """A checkpoint of random weights, so large that predictions differ, with a real tokenizer."""
    _, transformers = hugging_face.needed()
    pytest.importorskip("accelerate", reason="the harness's own backend needs it: pip install accelerate")
    file = SHARED / "tokenizers" / "gpt-neox-20b" / "20B_tokenizer.json"
    if not file.is_file():
        pytest.skip(f"there is no {file}: GROWLM_TEST_DATA says where the test data are")
    # 256 positions: the harness's backend refuses a choice that is longer than the model reads, and PIQA has some.
    sizes = {"vocab_size": 50304, "hidden_size": 48, "num_attention_heads": 4, "max_position_embeddings": 256}
    model = hugging_face.make_model("llama2", **sizes, num_hidden_layers=2, bos_token_id=0, eos_token_id=0)
    folder = hugging_face.save(model, tmp_path_factory.mktemp("checkpoint"))
    text = file.read_text(encoding="utf-8")
    if "BOS" in request.param:
        text = _with_bos(json.loads(text))
    (folder / "raw.json").write_text(text)
    ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "raw.json"), **ends)
    (folder / "raw.json").unlink()
    tokenizer.save_pretrained(folder)
    return folder


def _with_bos(tokenizer: dict) -> str:
    """The tokenizer.json with a template that begins every text with BOS, as Llama's has."""
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    start = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, piece],
        "pair": [start, piece, start, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    return json.dumps(tokenizer)


@pytest.fixture(scope="module")
def both(folder):
    """The harness's own backend, and ours, on one checkpoint."""
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(folder), device="cpu", batch_size=8, dtype="float32")
    ours, _ = open_checkpoint(folder)
    return theirs, ours


def outcomes(model, names, limit):
    """The harness's results, and what the model said of every request, by task."""
    with manager(names, SHARED / "evals") as tasks:
        loaded = tasks.load(list(names))
        for task in loaded["tasks"].values():
            task.set_config(key="num_fewshot", value=0)
        found = evaluator.evaluate(model, loaded, limit=limit, bootstrap_iters=0)
    said = {name: [each["resps"] for each in samples] for name, samples in found["samples"].items()}
    return found["results"], said


def numbers(results):
    return {
        (task, metric): value
        for task, row in results.items()
        for metric, value in row.items()
        if "," in metric and isinstance(value, float)
    }


def test_accuracies_and_log_likelihoods_are_those_of_the_harness(both):
    theirs, ours = both
    names = ("lambada_openai", "arc_easy", "piqa", "sciq")
    expected, said = outcomes(theirs, names, DOCUMENTS)
    results, says = outcomes(Adapter(ours), names, DOCUMENTS)
    for name in names:
        pairs = [[pair for doc in each[name] for request in doc for pair in request] for each in (said, says)]
        (there, greedy), (here, greedy_here) = (zip(*each, strict=True) for each in pairs)
        np.testing.assert_allclose(here, there, atol=1e-3, rtol=0)
        assert greedy == greedy_here and len(here) >= DOCUMENTS
    a, b = numbers(expected), numbers(results)
    assert a.keys() == b.keys() and len(a) >= 7
    for key, value in a.items():
        assert b[key] == pytest.approx(value, rel=1e-3), key
    # Predictions that differ, or the test could not fail: not all choices are right, or wrong.
    assert all(0 < a[task, "acc,none"] < 1 for task in names[1:])


def test_the_two_backends_encode_alike(both):
    theirs, ours = both
    assert ours.add_bos == (theirs.tok_encode("a")[0] == 0)
    pairs = [
        ("Question: why?\nAnswer:", " because"),
        ("two spaces  ", "here"),
        ("a line\n", "and more"),
        ("un", "able"),
    ]
    assert encode_pairs(ours, pairs) == [theirs._encode_pair(*pair) for pair in pairs]
    ((context, continuation),) = encode_pairs(ours, [("", " on its own")])
    assert (context, continuation) == ([theirs.prefix_token_id], theirs.tok_encode(" on its own", False))


@pytest.mark.slow
def test_rolling_log_likelihoods_are_those_of_the_harness(both):
    """Of whole pages of WikiText: some are many windows long, and one is short."""
    theirs, ours = both
    expected, said = outcomes(theirs, ["wikitext"], 2)
    results, says = outcomes(Adapter(ours), ["wikitext"], 2)
    a, b = (np.asarray([float(doc[0][0]) for doc in each["wikitext"]]) for each in (said, says))
    lengths = [len(theirs.tok_encode(page)) for page in cut_pages(wikitext())[:2]]
    assert max(lengths) > 4 * ours.length
    assert np.abs(a - b).max() / max(lengths) < 1e-5 and np.abs(a / b - 1).max() < 1e-6
    for key, value in numbers(expected).items():
        assert numbers(results)[key] == pytest.approx(value, rel=1e-4), key


def wikitext():
    return (SHARED / "evals" / "wikitext-2-raw-test.txt").read_text(encoding="utf-8")


# --- the harness's tasks on local records


@pytest.fixture(scope="module")
def model():
    return LanguageModel(MODEL, init(MODEL, jax.random.key(0)), load_tokenizer("bytes"), 64, 0)


def test_the_papers_tasks_run_on_local_files(model, tmp_path):
    write_records(tmp_path, "sciq", "lambada_openai", "piqa", "winogrande", "logiqa", "arc_easy")
    (tmp_path / "arc_challenge.jsonl").write_text((tmp_path / "arc_easy.jsonl").read_text())
    (tmp_path / "wikitext.txt").write_text(PAGES)
    results = evaluate(model, ["paper"], data_dir=tmp_path)
    assert set(results["results"]) == set(PAPER)
    assert results["n-samples"]["wikitext"]["effective"] == 2
    assert results["results"]["sciq"]["sample_len"] == 7
    accuracies = [results["results"][name]["acc,none"] for name in PAPER[:7]]
    assert results["average"]["acc"] == pytest.approx(sum(accuracies) / 7)
    json.dumps(results)
    # The pages as the task's detokenizer leaves them, each read from EOS on, without batches.
    pages = " = One =\n\nA first page.\n== Part ==\n\nMore of it. ", " = Two =\n\nThe second.\n"
    total = sum(plain_rolling(model, page.encode()) for page in pages)
    words = sum(len(page.split()) + 2 for page in cut_pages(PAGES))  # and an empty one before and after
    assert results["results"]["wikitext"]["word_perplexity,none"] == pytest.approx(np.exp(-total / words), rel=1e-4)
    # A choice, by hand.
    chosen = [sciq_choice(model, record) for record in RECORDS["sciq"]]
    assert results["results"]["sciq"]["acc,none"] == pytest.approx(np.mean([plain == 3 for plain, _ in chosen]))
    assert results["results"]["sciq"]["acc_norm,none"] == pytest.approx(np.mean([norm == 3 for _, norm in chosen]))
    assert len({plain for plain, _ in chosen} | {norm for _, norm in chosen}) > 1


def test_scores_with_resolution_are_those_of_the_log_likelihoods(model, tmp_path):
    """Of choices, of contexts as choices, of one text, and of a document without a right answer; each by hand."""
    tasks = ["sciq", "lambada_openai", "winogrande", "piqa", "truthfulqa_mc2"]
    write_records(tmp_path, *tasks)
    with (tmp_path / "piqa.jsonl").open("a") as file:
        file.write(json.dumps(RECORDS["piqa"][0] | {"label": -1}) + "\n")
    results = evaluate(model, tasks, data_dir=tmp_path)["results"]

    sciq = [(sciq_scores(model, record), record["correct_answer"]) for record in RECORDS["sciq"]]
    found = [-np.log2(np.exp(nats[3]) / np.exp(nats).sum()) for (nats, _), _ in sciq]
    assert results["sciq"]["bits,none"] == pytest.approx(np.mean(found), rel=1e-4)
    assert results["sciq"]["bits_stderr,none"] == pytest.approx(np.std(found, ddof=1) / 7**0.5, rel=1e-3)
    a_character = [np.exp(nats / lengths) for (nats, lengths), _ in sciq]
    normed = np.stack([each / each.sum() for each in a_character])
    squares = ((normed - np.eye(4)[3]) ** 2).sum(axis=1)
    assert results["sciq"]["brier_norm,none"] == pytest.approx(squares.mean(), rel=1e-4)
    a_byte = [-nats[3] / np.log(2) / len(f" {text}") for (nats, _), text in sciq]
    assert results["sciq"]["answer_bits_per_byte,none"] == pytest.approx(np.mean(a_byte), rel=1e-4)

    row = results["lambada_openai"]
    assert row["bits,none"] == pytest.approx(np.log2(row["perplexity,none"])) and "brier,none" not in row

    (record,) = RECORDS["winogrande"]
    before, after = record["sentence"].split("_")
    wholes = [f"{before}{option}{after}".encode()[-model.length - 1 :] for option in ("cup", "bag")]
    cup, bag = (plain_log_likelihood(model, whole, len(after)) for whole in wholes)
    assert results["winogrande"]["bits,none"] == pytest.approx(np.log2(1 + np.exp(bag - cup)), rel=1e-3)

    nats = choice_scores(model, "Question: Boil water.\nAnswer:", ["Heat it.", "Read to it."])
    right = [-np.log2(np.exp(nats[n % 2]) / np.exp(nats).sum()) for n in range(4)]
    assert results["piqa"]["sample_len"] == 5
    assert results["piqa"]["bits,none"] == pytest.approx(np.mean(right), rel=1e-4)
    assert results["piqa"]["bits_stderr,none"] == pytest.approx(np.std(right, ddof=1) / 2, rel=1e-3)
    assert not any(key.startswith("bits") for key in results["truthfulqa_mc2"])  # it has a rule of its own


def plain_log_likelihood(model, tokens, scored):
    """Of the last tokens, from all logits of the model on these tokens alone, with zeros after them."""
    padded = np.zeros((1, model.length), np.int32)
    padded[0, : len(tokens) - 1] = list(tokens)[:-1]
    logits = np.asarray(apply(model.config, model.params, padded)[0], np.float64)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return sum(logits[i, tokens[i + 1]] for i in range(len(tokens) - 1 - scored, len(tokens) - 1))


def plain_rolling(model, tokens):
    """In windows as the harness's own utilities cut them."""
    found = get_rolling_token_windows(list(tokens), model.prefix, model.length, 1)
    pairs = [make_disjoint_window(pair) for pair in found]
    return sum(plain_log_likelihood(model, context + new, len(new)) for context, new in pairs)


def sciq_choice(model, record):
    """The choice by log-likelihood, and by that over the length of the text."""
    nats, lengths = sciq_scores(model, record)
    return int(np.argmax(nats)), int(np.argmax(nats / lengths))


def sciq_scores(model, record):
    """Log-likelihoods and lengths of the choices, the right one last."""
    context = f"{record['support']}\nQuestion: {record['question']}\nAnswer:"
    texts = [record[key] for key in ("distractor1", "distractor2", "distractor3", "correct_answer")]
    return choice_scores(model, context, texts), np.asarray([len(text) for text in texts])


def test_the_papers_average_is_of_seven_accuracies_or_of_the_ten_of_its_table_6():
    """Of LAMBADA and WinoGrande, which have no other, acc stands for acc_norm."""
    results = {name: {"acc,none": number / 10} for number, name in enumerate(PAPER[:7])}
    for name in ("arc_challenge", "arc_easy", "logiqa", "piqa", "sciq"):
        results[name]["acc_norm,none"] = 0.9
    average = paper_average(results)
    assert average == pytest.approx({"acc": 2.1 / 7, "acc_norm": (0.0 + 0.6 + 5 * 0.9) / 7})
    assert paper_average({name: row for name, row in results.items() if name != "piqa"}) is None
    more = results | {name: {"acc,none": 0.5, "acc_norm,none": 0.6} for name in ("boolq", "hellaswag", "openbookqa")}
    assert paper_average(more) == pytest.approx({"acc": (2.1 + 1.5) / 10, "acc_norm": (0.6 + 5 * 0.9 + 1.8) / 10})


def test_groups_and_tags_run_on_local_files(model, tmp_path):
    """The 13 tasks of a group, of which every file is needed; the group's score weighs tasks by their size."""
    names = sorted(load_index(("mmlu_humanities",)).task_index["mmlu_humanities_tasks"].tags)
    record = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 1}
    for number, name in enumerate(names):
        lines = [json.dumps(record | {"answer": (number + i) % 4}) for i in range(number % 3 + 1)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    write_records(tmp_path, "arc_easy")
    (tmp_path / "arc_challenge.jsonl").write_text((tmp_path / "arc_easy.jsonl").read_text())
    results = evaluate(model, ["mmlu_humanities", "ai2_arc", names[0]], data_dir=tmp_path)["results"]
    assert {"mmlu_humanities", "arc_easy", "arc_challenge", *names} == set(results)
    sizes = [results[name]["sample_len"] for name in names]
    mean = np.average([results[name]["acc,none"] for name in names], weights=sizes)
    assert results["mmlu_humanities"]["acc,none"] == pytest.approx(mean)
    (tmp_path / f"{names[3]}.jsonl").unlink()
    with pytest.raises(InputError, match=f"lacks {names[3]}.jsonl"):
        evaluate(model, ["mmlu_humanities"], data_dir=tmp_path)


def test_other_benchmarks_run_by_name_on_local_files(model, tmp_path):
    """BoolQ, OpenBookQA and TruthfulQA; the first two by hand."""
    tasks = ["boolq", "openbookqa", "truthfulqa_mc1", "truthfulqa_mc2"]
    results = evaluate(model, tasks, data_dir=write_records(tmp_path, *tasks))["results"]
    right = {"boolq": [], "openbookqa": []}
    for record in RECORDS["boolq"]:
        context = f"{record['passage']}\nQuestion: {record['question']}?\nAnswer:"
        right["boolq"].append(best_of(model, context, ["no", "yes"]) == record["label"])
    for record in RECORDS["openbookqa"]:
        choice = best_of(model, record["question_stem"], record["choices"]["text"])
        right["openbookqa"].append("ABCD"[choice] == record["answerKey"])
    for name, of in right.items():
        assert results[name]["acc,none"] == pytest.approx(np.mean(of))
    assert results["truthfulqa_mc1"]["acc,none"] in (0, 1) and 0 < results["truthfulqa_mc2"]["acc,none"] < 1


def best_of(model, context, texts):
    return int(np.argmax(choice_scores(model, context, texts)))


def choice_scores(model, context, texts):
    """The log-likelihood of every text after the context, which is cut to fit."""
    whole = [f"{context} {text}".encode()[-model.length - 1 :] for text in texts]
    return np.asarray([plain_log_likelihood(model, row, len(t) + 1) for row, t in zip(whole, texts, strict=True)])


@pytest.mark.slow
def test_generation_and_examples_before_a_question(model, tmp_path):
    write_records(tmp_path, "gsm8k", "hellaswag")
    with pytest.raises(InputError, match=r"lacks gsm8k\.train\.jsonl \(of which 5"):
        evaluate(model, ["gsm8k"], data_dir=tmp_path)
    results = evaluate(model, ["gsm8k", "hellaswag"], data_dir=tmp_path, shots=0)
    assert results["results"]["gsm8k"]["exact_match,strict-match"] == 0.0
    (tmp_path / "gsm8k.train.jsonl").write_text((tmp_path / "gsm8k.jsonl").read_text() * 9)
    assert evaluate(model, ["gsm8k"], data_dir=tmp_path, limit=1)["n-shot"]["gsm8k"] == 5


def test_generation_is_the_harnesss(both):
    """Greedy, cut at the first text to stop at, from a context that is too long too."""
    theirs, ours = both
    contexts = ["The sea was", "Once upon a time there was a king who had " * 40, "1, 2, 3, 4"]
    settings = [{"until": ["zz"], "max_gen_toks": 12}, {"until": [" a", " the"], "max_gen_toks": 6, "do_sample": False}]
    requests = [
        Instance("generate_until", {}, (context, dict(setting)), i)
        for i, (context, setting) in enumerate((c, s) for c in contexts for s in settings)
    ]
    expected = theirs.generate_until(requests, disable_tqdm=True)
    assert Adapter(ours).generate_until(requests) == expected
    assert len(set(expected)) > 3


@pytest.mark.parametrize(
    ("names", "files", "options", "says"),
    [
        (["arc_esay"], {}, {}, "got 'arc_esay'; did you mean 'arc_easy'"),
        (["sciq", "piqa"], {"sciq.jsonl": "{}"}, {}, "lacks piqa.jsonl"),
        (["wikitext"], {}, {}, "lacks wikitext.jsonl or wikitext.txt"),
        (["sciq"], {"sciq.jsonl": '{"a": 1}\nnot JSON\n'}, {}, "sciq.jsonl line 2 must be a JSON object"),
        (["sciq"], {"sciq.jsonl": ""}, {}, "sciq.jsonl must hold a JSON object a line"),
        (["sciq"], {"sciq.jsonl": '{"question": "Why?"}\n'}, {}, "must hold the records of sciq, "),
        (
            ["sciq"],
            {"sciq.jsonl": '{"question": "Why?"}\n{"answer": "So."}\n'},
            {},
            "line 2 must have the fields of line 1, it lacks 'question'",
        ),
        (["squadv2"], {}, {}, "task squadv2 makes its data itself"),
        (["sciq"], {}, {"limit": 0}, "limit must be >= 1, got 0"),
        (["sciq"], {}, {"batch": 0}, "batch must be >= 1, got 0"),
        ([], {}, {}, "or paper, got none"),
    ],
)
def test_bad_input_is_one_line(model, tmp_path, names, files, options, says):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        evaluate(model, names, data_dir=tmp_path, **options)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_names_are_found_where_the_harness_has_them():
    """Its index of all YAML files, which takes ten seconds to parse, has no name that the text of the files hides."""
    whole = TaskManager().task_index
    assert whole.keys() <= folders_by_name().keys()
    for name, entry in whole.items():
        folders = {whole[task].yaml_path.parent for task in entry.tags} if entry.kind.name == "TAG" else set()
        assert folders | ({entry.yaml_path.parent} if entry.yaml_path else set()) <= folders_by_name()[name], name
    for name in ("paper", "glue", "mmlu", "ai2_arc", "openllm"):  # a tag in several folders, groups of groups
        found = load_index(tuple(named([name]))).task_index
        assert all(found[each] == whole[each] for each in named([name])), name


def test_the_paper_is_the_eight_tasks():
    assert named(["sciq", "paper"]) == ["sciq", *(name for name in PAPER if name != "sciq")]
    assert len(named(["paper_7b"])) == 11 and len(named(["paper", "paper_7b"])) == 11


def test_the_harness_is_an_extra(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install growlm\[eval\]"):
        evaluate(model, ["sciq"])


# --- the command


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two stages, evaluated in the middle of its ramp and at its end."""
    folder = tmp_path_factory.mktemp("run")
    options = {"mask_tokens": 20 * tiny.STEP, "whole_blocks": True}
    grown = tiny.grown(6, growth={"operator": "random", "options": options})
    config = tiny.run_config(tiny.write_corpus(folder), tiny.stage(4), grown, evaluation={"batches": 4})
    train(config, folder / "work", threading.Event())
    return folder / "work"


def test_a_run_is_measured_as_its_validation_loss_is(workdir):
    """Under the masks that are half open at its last step, on the same tokens; without them it is another number."""
    model, origin = open_checkpoint(workdir)
    record = tiny.records(workdir)[-1]
    assert (origin["step"], origin["tokens"], model.length) == (record["step"], record["tokens"], tiny.LENGTH)
    saved = find_saved(workdir)
    corpus = load_corpus(saved.data.corpus)
    rows = validation_batches(corpus.validation, batch=tiny.BATCH, length=tiny.LENGTH, count=4).reshape(-1, 17)
    requests = [[Window(tuple(row), 16)] for row in rows.tolist()]
    mean = -np.mean([each.log_likelihood for each in score(model, requests)]) / 16
    assert mean == pytest.approx(record["val_loss"], rel=1e-5)
    bare = dataclasses.replace(model, params=read_state(saved).params, block_scale=None)
    assert np.mean([each.log_likelihood for each in score(bare, requests)]) / -16 != pytest.approx(mean, rel=1e-4)


def test_the_command_prints_a_table_and_writes_the_harnesss_json(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("growlm.commands.evaluate.cached_on_disk", asked := MagicMock())
    write_records(tmp_path, "sciq")
    (tmp_path / "novel.txt").write_text("It was a dark night, and it rained. " * 20)
    options = [f"--checkpoint={workdir}", f"--data_dir={tmp_path}", f"--perplexity={tmp_path / 'novel.txt'}"]
    assert main(["evaluate", *options, "--tasks=sciq", "--limit=3", "--batch=2"]) == 0
    out = capsys.readouterr().out
    (file,) = (workdir / "evaluations").iterdir()
    held = tiny.read_json(file)
    assert held["results"]["sciq"]["sample_len"] == 3 and held["growlm"]["step"] == 10
    assert held["growlm"]["tasks"] == ["sciq"] and held["growlm"]["tokenizer"]["name"] == "bytes"
    shown = f"{held['results']['sciq']['acc_norm,none']:.4f}"
    assert [line.split()[-3] for line in out.splitlines() if "acc_norm" in line] == [shown]
    expected = perplexity(open_checkpoint(workdir)[0], [(tmp_path / "novel.txt").read_text()])
    measured = held["results"][str(tmp_path / "novel.txt")]
    assert measured["word_perplexity,none"] == pytest.approx(expected["word_perplexity"])
    assert str(file) in out
    assert main(["evaluate", options[0], options[2], f"--output={tmp_path / 'out'}", "--step=4"]) == 0
    assert tiny.read_json(*(tmp_path / "out").iterdir())["growlm"]["step"] == 4
    assert asked.call_count == 2  # programs are kept for the next process


def test_the_command_refuses_bad_input(workdir, tmp_path, capsys):
    def line(*options):
        assert main(["evaluate", *options]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        return said

    run = f"--checkpoint={workdir}"
    assert "--tasks=NAME" in line(run)
    assert "is no folder" in line(f"--checkpoint={tmp_path / 'gone'}", "--tasks=sciq")
    assert "holds no model" in line(f"--checkpoint={tmp_path}", "--tasks=sciq")
    assert "one of its checkpoints, 4, 10, got 3" in line(run, "--tasks=sciq", "--step=3")
    assert "got 'float8'" in line(run, "--tasks=sciq", "--dtype=float8")
    assert "cannot be read" in line(run, f"--perplexity={tmp_path / 'gone.txt'}")
    assert "scqi" in line("--checkpoint=gone", "--tasks=scqi")  # before anything large is read
    assert "size in --mesh must be one of" in line(run, "--tasks=sciq", "--mesh.tensr=2")
    large = SHARED / "tokenizers" / "gpt-neox-20b"
    if large.is_dir():
        assert "50277" in line(run, "--tasks=sciq", f"--tokenizer={large}")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in line(run, "--tasks=sciq", f"--output={tmp_path / 'file' / 'out'}")
    assert not (workdir / "evaluations").exists() or not any((workdir / "evaluations").glob("*.part"))


def test_a_run_whose_corpus_is_gone_says_so(workdir, tmp_path, capsys):
    """It may have been a prepared one, with a tokenizer of its own."""
    shutil.copytree(workdir, tmp_path / "run")
    config = tiny.read_json(tmp_path / "run" / "config.json")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"corpus": str(tmp_path / "gone")}))
    (tmp_path / "text.txt").write_text("Some text.")
    options = [f"--checkpoint={tmp_path / 'run'}", f"--perplexity={tmp_path / 'text.txt'}"]
    assert main(["evaluate", *options]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "gone, which is not here: --tokenizer=SOURCE" in said
    assert main(["evaluate", *options, "--tokenizer=bytes"]) == 0


def test_a_run_on_prepared_text_has_the_tokenizer_beside_it(workdir, tmp_path):
    prepared.prepared(prepared.write_sources(tmp_path / "text"), tmp_path / "prepared")
    tokenizer = load_tokenizer(str(tmp_path / "prepared"))
    shutil.copytree(workdir, tmp_path / "run")
    config = tiny.read_json(workdir / "config.json") | {"corpus": str(tmp_path / "prepared")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    model, _ = open_checkpoint(tmp_path / "run")
    assert model.tokenizer.name == str(tmp_path / "prepared")
    assert (model.prefix, model.add_bos) == (tokenizer.eos, False)
    assert open_checkpoint(workdir)[0].tokenizer.name == "bytes"


def test_an_imported_checkpoint_is_read_as_where_it_came_from(both, folder, tmp_path):
    _, ours = both
    assert main(["convert", f"--source={folder}", f"--output={tmp_path / 'imported'}", "--to=growlm"]) == 0
    model, _ = open_checkpoint(tmp_path / "imported")
    assert (model.length, model.prefix, model.add_bos) == (ours.length, ours.prefix, ours.add_bos)
    assert perplexity(model, ["The same text."]) == perplexity(ours, ["The same text."])
