"""What `growlm evaluate` refuses before it reads a checkpoint, and a benchmark that its tokenizer leaves nothing of."""

from types import SimpleNamespace

import pytest

from growlm.__main__ import main
from growlm.errors import InputError


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--batch=0", "batch must be >= 1, got 0"),
        ("--limit=0", "limit must be >= 1, got 0"),
        ("--limit=3", "--limit must be unset without --tasks, got 3"),
        ("--shots=0", "--shots must be unset without --tasks, got 0"),
        ("--data_dir=.", "--data_dir must be unset without --tasks, got '.'"),
    ],
)
def test_what_would_be_ignored_is_one_line(tmp_path, capsys, option, says):
    (tmp_path / "text.txt").write_text("Some text.")
    checkpoint = f"--checkpoint={tmp_path / 'gone'}"  # a model is not needed to see it
    assert main(["evaluate", checkpoint, f"--perplexity={tmp_path / 'text.txt'}", option]) == 2
    assert capsys.readouterr().err == f"growlm: {says}\n"


def test_a_choice_that_is_merged_into_its_question_is_refused_by_name():
    """As the harness's own backend fails there: of no tokens the likelihood is 1."""
    pytest.importorskip("lm_eval", reason="needs the extra eval: pip install growlm[eval]")
    from growlm.evaluation.harness import encode_pairs

    def encode_all(texts, add_bos=None):
        return [[*text.replace("ab", "x").encode()] for text in texts]

    model = SimpleNamespace(encode_all=encode_all, prefix=0, tokenizer=SimpleNamespace(name="merging"))
    assert encode_pairs(model, [("a", "cb"), ("a", "")]) == [([97], [99, 98]), ([97], [])]
    with pytest.raises(InputError) as error:
        encode_pairs(model, [("a", "c"), ("a", "b")])
    said = "a continuation must be text with tokens of its own after 'a', for tokenizer merging, got 'b'"
    assert str(error.value) == said
