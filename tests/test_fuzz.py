"""Files of every kind, damaged at random places: refused in a line, or read for what was written; never a traceback."""

import random
import shutil
import time

import jax
import numpy as np
import pytest
import tiny

from growlm.commands.convert import convert_folder
from growlm.data.prepare import Request, prepare, verify
from growlm.errors import InputError
from growlm.report.records import read
from growlm.training.run import train
from growlm.training.saved import read_model

SEED, CASES = 0, 60


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run, its export, and a prepared corpus."""
    home = tmp_path_factory.mktemp("fuzz")
    corpus = tiny.write_corpus(home)
    train(tiny.run_config(corpus, tiny.stage(2), tiny.grown(2)), home / "run")
    convert_folder(home / "run", home / "export", "huggingface")
    prepare(Request(sources=(corpus,), output=home / "prepared", tokenizer="bytes", workers=1))
    return home


def of_model(folder):
    """The model in a folder, bit for bit."""
    config, params = read_model(folder)
    return config, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]


def of_records(folder):
    """What a report is made of."""
    return [(run.config, run.metrics, run.growths, run.decisions) for run in read(folder).runs.values()]


READ = {"run": (of_model, of_records), "export": (of_model,), "prepared": (verify,)}


def damaged(content, draw):
    """The bytes of a file, with a bit flipped, cut, with some more, or with others in some place."""
    place = draw.randrange(len(content))
    noise = draw.choice((b"[" * 10**5, b'{"\\ud800": 1' + b"0" * 400 + b"}", b"\xff\xfe", b"null", draw.randbytes(64)))
    return {
        "flip": lambda: content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :],
        "cut": lambda: content[:place],
        "more": lambda: content + noise,
        "other": lambda: content[:place] + noise + content[place + len(noise) :],
        "whole": lambda: noise,
    }[draw.choice(("flip", "flip", "flip", "cut", "more", "other", "whole"))]()


@pytest.mark.slow
@pytest.mark.parametrize("kind", READ)
def test_a_damaged_file_is_refused_in_a_line_or_read_for_what_was_written(folders, tmp_path, kind):
    draw, folder = random.Random(f"{SEED} {kind}"), shutil.copytree(folders / kind, tmp_path / kind)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    want, refused = [reader(folder) for reader in READ[kind]], 0
    for case in range(CASES):
        path = draw.choice(files)
        content = path.read_bytes()
        path.write_bytes(damaged(content, draw))
        for reader, undamaged in zip(READ[kind], want, strict=True):
            began = time.monotonic()
            try:
                found = reader(folder)
            except InputError as error:
                assert len(str(error).splitlines()) == 1, str(error)
                refused += 1
            else:
                # What has no checksum (any more) may say something else; half a last line is a killed writer's.
                left = path.read_bytes()
                half = path.name == "metrics.jsonl" and not left.endswith(b"\n")
                assert found == undamaged or half or b"crc32" not in left, (case, path)
            assert time.monotonic() - began < 60, (case, path)
        path.write_bytes(content)
    assert refused > CASES / 4
