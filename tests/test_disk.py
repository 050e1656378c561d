"""A disk that takes no more: one line that names the file, and the same command ends as it would have."""

import contextlib
import resource

import pytest
import tiny

from growlm.commands.convert import convert_folder
from growlm.errors import InputError
from growlm.training.run import train


@contextlib.contextmanager
def largest_file(nbytes):
    """The nearest to a full disk that every machine can make: no file may be larger than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_full_disk_is_one_line_that_names_the_file_and_the_same_command_goes_on(tmp_path):
    every = {"checkpoint": {"every_tokens": 2 * tiny.STEP}}
    config = tiny.run_config(tiny.write_corpus(tmp_path), tiny.stage(4), tiny.grown(4), **every)
    train(config, tmp_path / "whole")
    for nbytes, said in ((30_000, r"cannot write a checkpoint in \S+/checkpoints: File too large"), (1000, r"json")):
        with largest_file(nbytes), pytest.raises((InputError, OSError), match=said) as refused:
            train(config, tmp_path / "full")
        assert len(str(refused.value).splitlines()) == 1
    train(config, tmp_path / "full")
    assert tiny.timeless(tmp_path / "full") == tiny.timeless(tmp_path / "whole")
    with largest_file(20_000), pytest.raises(OSError, match=r"File too large: '\S+/model.safetensors'"):
        convert_folder(tmp_path / "whole", tmp_path / "out", "huggingface")
    assert not (tmp_path / "out").exists()
