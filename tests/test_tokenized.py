"""Folders of datatrove's own tokenizer step as corpora."""

import numpy as np
import pytest
from prepared import TEXTS

from growlm.commands.convert import tokenizer_files
from growlm.data import batches, load_corpus, load_tokenizer, tokenizer_of
from growlm.errors import InputError

pytest.importorskip("datatrove", reason="needs the extra data: pip install growlm[data]")
from datatrove.data import Document
from datatrove.pipeline.tokens import DocumentTokenizer


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """TEXTS as two tasks of datatrove write them, shuffled."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("written")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<eos>"], show_progress=False)
    bpe.save(str(folder / "bpe.json"))
    step = DocumentTokenizer(str(folder / "tokens"), str(folder / "bpe.json"), eos_token="<eos>", seed=0)
    for rank in range(2):
        step.run((Document(text, str(number)) for number, text in enumerate(TEXTS[rank::2])), rank, 2)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    for path in (written / "tokens").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def texts(tokens, tokenizer):
    ends = np.flatnonzero(tokens == tokenizer.eos) + 1
    assert ends[-1] == len(tokens)
    return [tokenizer.decode(part[:-1]) for part in np.split(tokens, ends)[:-1]]


def test_every_document_is_there_once_and_the_last_of_each_file_are_held_out(folder):
    corpus, tokenizer = load_corpus(str(folder)), load_tokenizer(tokenizer_of(str(folder)))
    train, validation = texts(corpus.train[:], tokenizer), texts(corpus.validation[:], tokenizer)
    assert sorted(train + validation) == sorted(TEXTS) and len(validation) == 2
    first, second = sorted(folder.glob("*.ds"))
    assert train == texts(np.fromfile(first, "<u2"), tokenizer)[:-1] + texts(np.fromfile(second, "<u2"), tokenizer)[:-1]
    assert (corpus.vocab, corpus.eos, corpus.documents) == (tokenizer.vocab, tokenizer.eos, 400)
    assert corpus.tokenizer == tokenizer.fingerprint
    batch = next(batches(corpus.train, seed=0, batch=2, length=8, start=0))
    assert batch.shape[0] == 2


def test_the_fingerprint_is_of_the_content(folder, written, tmp_path):
    one = load_corpus(str(written / "tokens"))
    assert load_corpus(str(folder)).fingerprint == one.fingerprint
    path = next(folder.glob("*.ds"))
    tokens = np.fromfile(path, "<u2")
    tokens[0] += 1
    tokens.tofile(path)
    assert load_corpus(str(folder)).fingerprint != one.fingerprint


def test_a_small_folder_holds_out_one_document(folder):
    path = sorted(folder.glob("*.ds"))[1]
    for each in folder.glob(f"{path.name}*"):
        each.unlink()
    (path,) = folder.glob("*.ds")
    ends = np.fromfile(f"{path}.index", "<u8")[:3]
    ends.tofile(f"{path}.index")
    np.fromfile(path, "<u2")[: ends[-1]].tofile(path)
    corpus = load_corpus(str(folder))
    assert (len(corpus.train), len(corpus.validation)) == (ends[1], ends[2] - ends[1])
    ends[:1].tofile(f"{path}.index")
    np.fromfile(path, "<u2")[: ends[0]].tofile(path)
    with pytest.raises(InputError, match="must be two documents or more, got 1"):
        load_corpus(str(folder))


def test_the_tokenizer_may_lie_beside(folder, written):
    for path in folder.glob("*.metadata"):
        path.write_text("gpt2|2\n1\n1")
    with pytest.raises(InputError, match=r"must hold the tokenizer\.json of its tokenizer, gpt2, which"):
        load_corpus(str(folder))
    (folder / "tokenizer.json").write_bytes((written / "bpe.json").read_bytes())
    assert load_corpus(str(folder)).fingerprint == load_corpus(str(written / "tokens")).fingerprint
    assert tokenizer_of(str(folder)) == str(folder)


def cut_index(path):
    path.with_name(f"{path.name}.index").write_bytes(path.with_name(f"{path.name}.index").read_bytes()[:-8])


def no_index(path):
    path.with_name(f"{path.name}.index").unlink()


def other_end(path):
    tokens = np.fromfile(path, "<u2")
    tokens[-1] = 77
    tokens.tofile(path)


def wrong_metadata(path):
    path.with_name(f"{path.name}.metadata").write_text("gpt2|3")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (cut_index, r"\.ds must be of \d+ tokens, as its \.index says, got \d+"),
        (no_index, "cannot read .*index: No such file"),
        (other_end, "the last token of documents of .* must be its tokenizer's EOS 0, got 77"),
        (wrong_metadata, r"metadata must be TOKENIZER\|2 or TOKENIZER\|4, got 'gpt2\|3'"),
    ],
)
def test_what_is_broken_is_one_line(folder, change, says):
    change(min(folder.glob("*.ds")))
    with pytest.raises(InputError, match=says):
        load_corpus(str(folder))


def test_metadata_of_texts_cannot_be_added(folder):
    with pytest.raises(InputError, match="metadata must be unset"):
        load_corpus(str(folder), metadata=True)


def test_an_export_says_that_the_tokenizer_stays(folder, written, capsys):
    assert tokenizer_files(str(folder), [load_corpus(str(folder)).fingerprint]).ids == {}
    assert f"no tokenizer comes along: {str(folder)!r} is of datatrove, whose tokenizer is" in capsys.readouterr().err
