"""`growlm completion`: what a shell completes with the script."""

import shutil
import subprocess

import pytest

from growlm.__main__ import main
from growlm.commands.dispatch import COMMANDS

pytest.importorskip("shtab")

ASK = """source {script}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _shtab_growlm; echo ${{COMPREPLY[@]}}
"""


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """What bash makes of the last of some words."""
    if not (bash := shutil.which("bash")):
        pytest.skip("there is no bash")
    folder = tmp_path_factory.mktemp("shell")
    (folder / "some").mkdir()
    (folder / "text.txt").write_text("")

    def ask(script, words):
        (folder / "script").write_text(script)
        text = ASK.format(script=folder / "script", words=words)
        return subprocess.run([bash, "-c", text], cwd=folder, capture_output=True, text=True, check=True).stdout.split()

    return ask


def test_bash_completes_commands_options_and_folders(completed, capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "growlm gr") == ["grow"]
    assert set(completed(script, "growlm ''")) >= set(COMMANDS)
    assert completed(script, "growlm prepare --tok") == ["--tokenizer"]
    assert completed(script, "growlm convert --source ''") == ["some"]
    assert set(completed(script, "growlm sample --checkpoint some --prompts ''")) >= {"some", "text.txt"}


def test_zsh_has_one_too_and_other_shells_are_one_line(capsys):
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef growlm")
    assert main(["completion", "csh"]) == 2
    assert "'csh' (choose from" in capsys.readouterr().err
