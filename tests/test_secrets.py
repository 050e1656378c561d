"""No secret of the environment, or of an address in a command, is in anything that growlm writes."""

import json
import secrets

import pytest
import tiny
from test_restart import Bench

from growlm.commands.options import command_line
from growlm.errors import InputError
from growlm.secrets import without_secrets
from growlm.training.sweep import _one_line

NAMES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_API_KEY",
    "GOOGLE_OAUTH_ACCESS_TOKEN",
    "GITHUB_TOKEN",
    "MY_PASSWORD",
)
SAID = {
    "gs://user:word@bucket/a": "gs://***@bucket/a",
    "https://a.b/c?x=1&X-Amz-Signature=abc&token=def#g": "https://a.b/c?x=1&X-Amz-Signature=***&token=***#g",
    "--push=hf_abcdefghijklmnopqrst": "--push=***",
    "AKIAABCDEFGHIJKLMNOP": "***",
    # What is none stays.
    "hf:some/model@0123456": "hf:some/model@0123456",
    "--config.stages[0].tokens=1e6": "--config.stages[0].tokens=1e6",
    "--tokenizer=a --config.evaluation.every_tokens=3": "--tokenizer=a --config.evaluation.every_tokens=3",
    "who@where of s3://bucket/key=3": "who@where of s3://bucket/key=3",
}


@pytest.mark.parametrize("text", SAID)
def test_addresses_are_kept_without_what_is_secret_in_them(text):
    assert without_secrets(text) == SAID[text]


def test_a_command_and_an_error_are_kept_without_what_the_environment_hides(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "canary-canary")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "no-secret-at-all")
    monkeypatch.setattr("sys.argv", ["growlm", "train", "--config=a.py:canary-canary", "true", "no-secret-at-all"])
    assert command_line() == "growlm train '--config=a.py:***' true no-secret-at-all"
    assert _one_line(InputError("no canary-canary")) == "no ***"


@pytest.mark.slow
def test_a_sweep_with_trackers_and_its_report_write_no_secret(tmp_path):
    for module in ("tensorboardX", "wandb", "trackio"):
        pytest.importorskip(module)
    bench, canaries = Bench(tmp_path), {name: secrets.token_hex(20) for name in NAMES}
    bench.options = ["--track=tensorboard,wandb,trackio"]
    runs = {"base": [tiny.stage(2, 2)], "grown": [tiny.stage(1), tiny.grown(1)]}
    bench.write("sweep", tiny.sweep(str(tmp_path / "corpus.txt"), runs, "base", grown=["grown"]))
    tiny.write_corpus(tmp_path)
    places = {"TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    bench.environment |= canaries | places
    code, said = bench.finish("swept", command="sweep")
    assert code == 0 and "goes on without" not in said, said
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    names = " ".join(path.name for path in written)
    assert all(part in names for part in ("report.html", "sweep.json", "tfevents", ".wandb", ".db"))
    for name, canary in canaries.items():
        assert canary not in said, name
        assert not [path for path, content in written.items() if canary.encode() in content], name
    assert json.loads((tmp_path / "swept" / "sweep.json").read_text())["command"].startswith("growlm sweep ")
