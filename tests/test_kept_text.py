"""What is kept for a user and made again: texts that follow from the package's files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from growlm.commands import kept_text

ROOT = Path(__file__).parents[1]
KEPT = "direct   kept\n"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """How often a text was made, with a cache and a package of the test's own, and a function that asks for it."""
    package = tmp_path / "package"
    (package / "growth").mkdir(parents=True)
    monkeypatch.setattr(kept_text, "__file__", str(package / "commands" / "kept_text.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    times = []

    def ask():
        text = kept_text.of_source("growths", lambda: times.append(None) or KEPT)
        assert text == KEPT
        return len(times)

    return ask


def test_a_text_is_made_again_only_where_the_package_changed(made, tmp_path):
    assert [made(), made()] == [1, 1]
    module = tmp_path / "package" / "growth" / "mine.py"
    module.write_text("OPERATORS['mine'] = mine\n")
    assert [made(), made()] == [2, 2]
    module.write_text("OPERATORS['mine'] = mind\n")  # as long as before
    assert [made(), made()] == [3, 3]
    module.rename(module.with_name("other.py"))
    assert made() == 4
    assert [path.name for path in (tmp_path / "cache" / "growlm" / "texts").iterdir()] == ["growths.json"]


def test_what_is_damaged_is_made_again(made, tmp_path):
    made()
    path = tmp_path / "cache" / "growlm" / "texts" / "growths.json"
    path.write_text(path.read_text().replace("kept", "gone"))
    assert [made(), made()] == [2, 2]
    path.write_bytes(b"{")
    assert made() == 3
    path.write_text(json.dumps([]))
    assert made() == 4


def test_a_text_is_made_where_nothing_can_be_kept(made, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [made(), made()] == [1, 2]


def growths(code):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


def test_grow_list_reads_what_is_kept_without_jax(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept_text.of_source("growths", lambda: KEPT)
    code = "import sys; from growlm.__main__ import main; main(['grow', '--list'])\n"
    done = growths(code + "print({'jax', 'flax', 'numpy'} & set(sys.modules))")
    assert done.stdout == f"{KEPT}\nset()\n" and not done.stderr


def test_the_list_is_made_without_a_device_and_the_exit_does_not_look_for_garbage(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = "import gc, sys; from growlm.__main__ import main; sys.argv[1:] = ['grow', '--list']; main()\n"
    code += "from jax._src.xla_bridge import backends_are_initialized\n"
    code += "print('devices:', backends_are_initialized(), 'frozen:', gc.get_freeze_count() > 100_000)"
    out = growths(code).stdout
    assert "\ng_stack " in out and out.endswith("devices: False frozen: True\n")


@pytest.mark.slow
def test_grow_list_says_the_same_from_the_cache_and_knows_rows_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ask = "from growlm.__main__ import main; main(['grow', '--list'])\n"
    first, second = growths(ask).stdout, growths(ask).stdout
    assert first == second and "\ng_stack " in first
    own = "from growlm.growth import OPERATORS\nOPERATORS['mine'] = OPERATORS['zero']\n"
    assert "\nmine " in growths(own + ask).stdout and growths(ask).stdout == first
