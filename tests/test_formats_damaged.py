"""Damaged checkpoints, at random: each is read for what it is, or refused in one line; nothing hangs or grows large."""

import contextlib
import copy
import dataclasses
import json
import time
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trees import noisy

import growlm
from growlm import read_model, write_model
from growlm.formats.folder import open_folder
from growlm.formats.layout import model_of, settings_of
from growlm.formats.safetensors import INDEX, SINGLE
from growlm.models import check_params

CASES = settings.default.max_examples // 3  # each writes and reads a folder
LARGE = 2**24  # bytes; the checkpoint has 20,000
CONFIG = growlm.ModelConfig(layers=2, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=24, vocab=32)

NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, 2, 3, 16, 2**31, 2**63, 10**9])
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["F32", "BF16", "F64", "../x.safetensors", "/etc/passwd", "a\nb", "llama", "qwen2", "mistral", "linear"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """For one file and for several: the folder, and what is in its files."""
    home = tmp_path_factory.mktemp("damaged")
    found = []
    for name, shard in (("one", 10**6), ("many", 8000)):
        write_model(home / name, CONFIG, noisy(CONFIG), shard=shard)
        (home / name / "checksums.json").unlink()
        found.append((home / name, {path.name: path.read_bytes() for path in (home / name).iterdir()}))
    return found


def paths_of(value, path=()):
    """Where in a JSON value there is something."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths_of(item, (*path, key))


@st.composite
def json_changes(draw):
    """(which of the paths, what is done there, the new value)."""
    return draw(st.integers(0, 10**6)), draw(st.sampled_from(["set", "delete", "add"])), draw(VALUES)


def changed_json(content, change):
    """A document with something in it set, deleted or added."""
    number, action, value = change
    document = copy.deepcopy(json.loads(content))
    paths = list(paths_of(document))
    *parents, last = paths[1 + number % (len(paths) - 1)]
    node = document
    for key in parents:
        node = node[key]
    if action == "delete":
        del node[last]
    elif action == "add" and isinstance(node, dict):
        node[str(value)] = node[last]
    else:
        node[last] = value
    return json.dumps(document).encode()


def changed_header(content, change):
    """A file of safetensors with something else in its header, whose length is right."""
    length = int.from_bytes(content[:8], "little")
    header = changed_json(content[8 : 8 + length], change)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def changed_bytes(content, change):
    """A file that is cut, has bytes in it that are others, or more at its end."""
    place, action, value = change
    place = place % 200 if place % 2 else place % (len(content) + 1)  # most of what matters is in front
    new = value.encode()
    parts = {"cut": b"", "set": new + content[place + len(new) :], "insert": new + content[place:]}
    return content[:place] + parts[action]


BYTES = st.tuples(
    st.integers(0, 10**6), st.sampled_from(["cut", "set", "insert"]), st.text(min_size=1, max_size=9) | TEXTS
)
DAMAGES = st.one_of(
    st.tuples(st.just(changed_json), st.sampled_from(["config.json", INDEX]), json_changes()),
    st.tuples(st.just(changed_header), st.just("safetensors"), json_changes()),
    st.tuples(st.just(changed_bytes), st.sampled_from(["config.json", INDEX, "safetensors"]), BYTES),
)


@settings(max_examples=CASES)
@given(st.integers(0, 1), st.integers(0, 9), st.lists(DAMAGES, min_size=1, max_size=3))
@example(0, 0, [(changed_json, "config.json", (0, "set", {"a": {"b": []}}))])
@example(1, 0, [(changed_bytes, "safetensors", (1, "set", "\xff" * 9))])
def test_a_damaged_folder_is_refused_in_one_line_or_read_for_what_it_is(folders, which, number, damages):
    folder, files = folders[which]
    files = dict(files)
    weights = sorted(name for name in files if name.endswith(".safetensors"))
    for damage, name, change in damages:
        name = weights[number % len(weights)] if name == "safetensors" else name if name in files else "config.json"
        with contextlib.suppress(ValueError, TypeError, KeyError, ZeroDivisionError):  # an earlier damage left nothing
            files[name] = damage(files[name], change)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    began = time.monotonic()
    tracemalloc.start()
    try:
        config, params = read_model(folder)
        check_params(config, params)
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
        deeper, source = dataclasses.replace(config, layers=config.layers + 1), open_folder(folder)
        written = json.dumps(settings_of(deeper, source.settings))  # what a growth would write
        assert model_of(json.loads(written)) == deeper
    except growlm.InputError as error:
        assert len(str(error).splitlines()) == 1, str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < LARGE
    assert time.monotonic() - began < 20


def test_undamaged_it_is_read(folders):
    """What the test above begins with."""
    for folder, files in folders:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        assert (SINGLE in files) == (INDEX not in files)
        config, params = read_model(folder)
        assert config == CONFIG
        jax.tree.map(np.testing.assert_array_equal, params, jax.tree.map(np.asarray, noisy(CONFIG)))
