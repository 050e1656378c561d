"""Scores of tokens: whatever the batches, they are those of the model on each text alone.

Run as a script, on 8 devices: the scores and the texts of a model on meshes.
"""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight import on_eight_devices
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import optimised

from growlm.data.tokenizers import load_tokenizer
from growlm.errors import InputError
from growlm.evaluation import LanguageModel, Sampling, generate, perplexity
from growlm.evaluation import score as module
from growlm.evaluation.prefixes import Row, grouped
from growlm.evaluation.sampling import _cut
from growlm.evaluation.score import Window, padded_length, score, windows
from growlm.evaluation.table import table
from growlm.models import ModelConfig, apply, init, loss, parameter_count
from growlm.models.loss import token_losses
from growlm.training.mesh import MeshConfig, make_mesh

CONFIG = ModelConfig(layers=2, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=24, vocab=256)
LENGTH = 48
MESHES = {"8x1x1": (8, 1, 1), "2x2x2": (2, 2, 2)}


def make_model(**options):
    """Weights ten times as large as fresh ones: predictions differ."""
    params = jax.tree.map(lambda leaf: leaf * (10 if leaf.ndim > 2 else 3), init(CONFIG, jax.random.key(0)))
    return LanguageModel(CONFIG, params, load_tokenizer("bytes"), **{"length": LENGTH, "prefix": 0} | options)


@pytest.fixture(scope="module")
def model():
    return make_model()


def log_softmax(model, tokens):
    """float64[length, vocab] on these tokens alone, with zeros after them, so that one program does for all."""
    padded = np.zeros((1, LENGTH), np.int32)
    padded[0, : len(tokens)] = tokens
    logits = np.asarray(apply(model.config, model.params, padded)[0, : len(tokens)], np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def plain(model, window):
    """The score of a window, one row at a time."""
    log_p = log_softmax(model, window.tokens[:-1])
    places = range(len(window.tokens) - 1 - window.scored, len(window.tokens) - 1)
    chosen = [window.tokens[i + 1] for i in places]
    greedy = all(log_p[i].argmax() == token for i, token in zip(places, chosen, strict=True))
    return sum(log_p[i, token] for i, token in zip(places, chosen, strict=True)), greedy


def some_windows(model, count=60, seed=0):
    """Of all lengths; some share their beginnings, and some go on as the model itself would."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        size = int(rng.integers(2, LENGTH + 2))
        tokens = rng.integers(1, 256, size).tolist()
        if number % 3 == 0 and found:
            tokens = [*found[-1].tokens[: size // 2], *tokens][: LENGTH + 1]
        if number % 4 == 0:
            for _ in range(2):
                tokens = [*tokens[-LENGTH:], int(log_softmax(model, tokens[-LENGTH:])[-1].argmax())]
            found.append(Window(tuple(tokens), 2))
        else:
            found.append(Window(tuple(tokens), int(rng.integers(1, len(tokens)))))
    return found


@pytest.mark.parametrize("rows", [None, 7])
def test_scores_are_those_of_every_text_alone(model, rows):
    found = some_windows(model)
    scores = score(model, [[window] for window in found], rows)
    expected = [plain(model, window) for window in found]
    np.testing.assert_allclose([s.log_likelihood for s in scores], [e for e, _ in expected], rtol=1e-5, atol=1e-4)
    assert [s.greedy for s in scores] == [greedy for _, greedy in expected]
    assert 5 < sum(s.greedy for s in scores) < len(scores) - 5


def questions(rng, sizes=((40, 3), (37, 5), (35, 2), (44, 1))):
    """Windows of some choices, up to 4 tokens long, after each of some contexts; those of the last are no choices."""
    found = []
    for size, choices in sizes:
        context = rng.integers(1, 256, size).tolist()
        found += [Window((*context, *rng.integers(1, 256, n := 1 + i % 4).tolist()), n) for i in range(choices)]
    return found


def test_a_beginning_is_read_once_for_all_that_go_on_from_it(model, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 16)  # beginnings are read in several pieces
    rng, cost = np.random.default_rng(3), module.COMPILING
    monkeypatch.setattr(module, "COMPILING", 0)
    found = [*some_windows(model, 9), *questions(rng)]
    found = [found[i] for i in rng.permutation(len(found))]
    before = module._begun_scores.program(little=True)._cache_size()
    scores = score(model, [[window] for window in found])
    compiled = module._begun_scores.program(little=True)._cache_size()
    assert compiled - before >= 2
    monkeypatch.setattr(module, "COMPILING", cost)
    score(model, [[window] for window in questions(rng)])  # too few for a program of their own
    assert module._begun_scores.program(little=True)._cache_size() == compiled
    expected = [plain(model, window) for window in found]
    np.testing.assert_allclose([s.log_likelihood for s in scores], [e for e, _ in expected], rtol=1e-5, atol=1e-4)
    assert [s.greedy for s in scores] == [greedy for _, greedy in expected]


def test_a_row_joins_those_with_which_more_is_saved():
    def row(*tokens, first):
        return Row(tokens, [(place, 0, 0) for place in range(first, len(tokens))])

    shared, question, other = range(40), range(50, 130), range(200, 280)
    rows = [row(*shared, *question, n, n, first=119) for n in range(3)]
    rows += [row(*shared, *other, n, first=119) for n in range(10)]
    groups = [(group.prefix, len(group.rows)) for group in grouped(rows)]
    assert groups == [(119, 3), (119, 8), (119, 2)]  # to begin with the 40 alone would save less
    short = [row(*range(30), n, first=29) for n in range(4)]
    assert [(group.prefix, len(group.rows)) for group in grouped(short)] == [(0, 1)] * 4
    assert grouped([row(*shared, 1, first=35), row(*shared, 2, first=33)])[0].prefix == 33  # before what is predicted


def test_a_request_is_all_of_its_windows(model):
    """Also of none, as an empty text has it."""
    found = some_windows(model, 9)
    each = score(model, [[window] for window in found])
    together = score(model, [found[:4], [], found[4:]])
    for request, part in zip(together, (each[:4], [], each[4:]), strict=True):
        assert request.log_likelihood == pytest.approx(sum(s.log_likelihood for s in part), rel=1e-5)
        assert request.greedy == all(s.greedy for s in part)


@settings(max_examples=60)
@given(
    length=st.integers(1, 9),
    context=st.lists(st.integers(1, 99), min_size=1, max_size=14),
    size=st.integers(0, 40),
)
def test_windows_predict_every_token_once_from_what_comes_before_it(length, context, size):
    continuation = list(range(100, 100 + size))
    both = [*context, *continuation]
    predicted = []
    for window in windows(context, continuation, length):
        assert 1 <= window.scored < len(window.tokens) <= length + 1
        end = both.index(window.tokens[-1]) + 1  # tokens of a continuation are all different
        assert tuple(both[end - len(window.tokens) : end]) == window.tokens
        predicted += window.tokens[len(window.tokens) - window.scored :]
    assert predicted == continuation


def test_windows_are_those_of_the_harness():
    """Its own example: every pass reads as much as the model can."""
    utils = pytest.importorskip("lm_eval.utils", reason="needs the extra eval: pip install growlm[eval]")
    for size, length in [(10, 4), (4, 4), (5, 4), (1, 4), (9, 1), (30, 7)]:
        tokens = list(range(1, size + 1))
        pairs = map(utils.make_disjoint_window, utils.get_rolling_token_windows(tokens, 0, length, 1))
        assert windows([0], tokens, length) == [Window((*a, *b), len(b)) for a, b in pairs]


def test_what_shares_its_beginning_shares_a_pass():
    def rows(*windows):
        return [(row.tokens, sorted(row.scored)) for row in module._shared([Window(*window) for window in windows])]

    # Four choices of one token, and one that goes on from the first.
    assert rows(((5, 6, 1), 1), ((5, 6, 2), 1), ((5, 6, 2, 9), 2), ((5, 7, 3), 1)) == [
        ((5, 7), [(1, 3, 3)]),
        ((5, 6, 2), [(1, 1, 0), (1, 2, 1), (1, 2, 2), (2, 9, 2)]),
    ]


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=6), min_size=1, max_size=12))
def test_no_row_begins_another(texts):
    rows = [row.tokens for row in module._shared([Window(tuple(text), 1) for text in texts])]
    assert not any(a == b[: len(a)] for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j)
    assert all(any(row[: len(text) - 1] == tuple(text[:-1]) for row in rows) for text in texts)


def test_few_shapes_are_compiled_and_kept(model):
    program = module._token_scores.program(little=True)
    before = program._cache_size()
    found = [Window(tuple(range(1, size)), 1 + size // 5) for size in range(4, LENGTH + 2)] * 3
    score(model, [[window] for window in found])
    assert program._cache_size() - before <= 4
    again = program._cache_size()
    other = dataclasses.replace(model, params=jax.tree.map(lambda leaf: leaf + 0.1, model.params))
    assert score(other, [[window] for window in found]) != score(model, [[window] for window in found])
    assert program._cache_size() == again


@pytest.mark.parametrize("little", [True, False])
def test_programs_that_are_soon_compiled_score_as_the_model_does(model, monkeypatch, little):
    """As users compile: the tests' own compiler is another. An option that XLA does not know is left out."""
    own = module._SoonCompiled(module._token_scores._function, ("forward", "mesh"))
    monkeypatch.setattr(module, "_token_scores", own)
    options = {size: settings | {"xla_cpu_no_such_option": True} for size, settings in module.OPTIONS.items()}
    monkeypatch.setattr(module, "OPTIONS", options)
    monkeypatch.setattr(module, "COMPILING", 1e20 if little else 0)
    found = some_windows(model, 8)
    with optimised(True):
        before = {size: own.program(size)._cache_size() for size in options}
        scores = score(model, [[window] for window in found])
        assert [size for size in options if own.program(size)._cache_size() > before[size]] == [little]
    for one, window in zip(scores, found, strict=True):
        expected, greedy = plain(model, window)
        assert one.greedy == greedy and math.isclose(one.log_likelihood, expected, rel_tol=1e-4, abs_tol=1e-4)


def test_rows_are_padded_further_where_that_is_cheaper_than_a_program(model, monkeypatch):
    sizes = (9, 2), (20, 15), (34, 3), (40, 20)  # tokens, and how many of them are scored
    rows = module._shared([Window(tuple(range(size, 2 * size)), scored) for size, scored in sizes])
    monkeypatch.setattr(module, "PADDING", 0)
    assert len(module._by_shape(model, rows)) == 4
    monkeypatch.setattr(module, "PADDING", 1)
    ((shape, groups),) = module._by_shape(model, rows).items()
    assert (shape.length, shape.count, len(groups)) == (LENGTH, LENGTH, 4)
    monkeypatch.setattr(module, "COMPILING", 2.5 * 2 * parameter_count(CONFIG) * (LENGTH - 32))
    assert sorted(len(groups) for groups in module._by_shape(model, rows).values()) == [2, 2]


def test_logits_are_made_of_scored_positions_only(model):
    """Of [batch, length, vocab] there is nothing in the program, and no more than a chunk of what is scored."""
    arrays = (jnp.zeros((4, 32), jnp.int32), jnp.zeros((4, 8), jnp.int32), jnp.zeros((4, 8), jnp.int32))
    forward = module.Forward(model.config, "float32", None)
    program = module._token_scores.program(little=True).lower(forward, None, (model.params, None), *arrays)
    assert "32x256xf32" in program.as_text()  # 4 x 8 positions, of which logits are made
    assert "128x256xf32" not in program.as_text() and "4x32x256xf32" not in program.as_text()


@pytest.mark.parametrize("most", [1, 700, 2**26])
def test_token_losses_in_any_chunks(monkeypatch, most):
    monkeypatch.setattr(loss, "CHUNK", most)
    rng = np.random.default_rng(0)
    x_ND, head_DV = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((11, 6), (6, 50)))
    logits_NV = np.asarray(x_ND @ head_DV, np.float64)
    target_N = rng.integers(0, 50, 11)
    target_N[::2] = logits_NV[::2].argmax(axis=1)
    losses, ranks = token_losses(x_ND, head_DV, jnp.asarray(target_N))
    expected = np.log(np.exp(logits_NV).sum(axis=1)) - logits_NV[np.arange(11), target_N]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert ranks.tolist() == [int((row > row[target]).sum()) for row, target in zip(logits_NV, target_N, strict=True)]
    assert set(ranks[::2].tolist()) == {0} != set(ranks[1::2].tolist())


def test_bfloat16_is_near(model):
    found = [[Window(window.tokens, len(window.tokens) - 1)] for window in some_windows(model, 8)]
    exact, near = (
        np.asarray([s.log_likelihood for s in score(dataclasses.replace(model, dtype=dtype), found)])
        for dtype in ("float32", "bfloat16")
    )
    assert 1e-4 < np.abs(near / exact - 1).max() < 0.05


@pytest.mark.parametrize(("tokens", "padded"), [(1, 32), (32, 32), (33, 64), (64, 64), (65, 100), (100, 100)])
def test_lengths_are_padded_to_powers_of_two_and_no_further_than_the_model_reads(tokens, padded):
    assert padded_length(tokens, 100) == padded


# --- perplexity


def test_perplexity_is_the_mean_over_tokens_bytes_and_words(model):
    texts = ["Ein Märchen,\n  so alt. " * 4, "kurz"]
    found = perplexity(model, texts)
    rows = [list(text.encode()) for text in texts]
    total = sum(plain(model, window)[0] for row in rows for window in windows([0], row, LENGTH))
    count, words = sum(map(len, rows)), 4 * 4 + 1 + 1  # and an empty word at the end
    assert found["log_likelihood"] == pytest.approx(total, rel=1e-5)
    assert (found["tokens"], found["bytes"], found["words"]) == (count, count, words)
    assert found["token_perplexity"] == pytest.approx(math.exp(-total / count), rel=1e-4)
    assert found["byte_perplexity"] == pytest.approx(found["token_perplexity"])
    assert found["word_perplexity"] == pytest.approx(math.exp(-total / words), rel=1e-3)
    assert found["bits_per_byte"] == pytest.approx(math.log2(found["byte_perplexity"]))
    with pytest.raises(InputError, match="at least one token"):
        perplexity(model, [""])


def test_a_model_that_knows_bos_has_it_before_a_text_and_does_not_predict_it():
    with_bos = make_model(prefix=7, add_bos=True)
    assert with_bos.encode_all(["ab"]) == [[7, 97, 98]]
    window = Window((7, 97, 98), 2)
    assert perplexity(with_bos, ["ab"])["log_likelihood"] == pytest.approx(plain(with_bos, window)[0], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "float16"}, "dtype must be one of bfloat16, float32, got 'float16'"),
        ({"length": 0}, "length must be >= 1, got 0"),
        (
            {"config": dataclasses.replace(CONFIG, vocab=100)},
            "bytes must be of at most the model's 100 tokens, got 256",
        ),
    ],
)
def test_a_model_that_cannot_be_measured(model, options, says):
    with pytest.raises(InputError, match=says):
        dataclasses.replace(model, **options)


def test_a_batch_has_rows(model):
    with pytest.raises(InputError, match="batch must be >= 1, got 0"):
        score(model, [[Window((1, 2), 1)]], rows=0)


def test_the_table_of_scores():
    results = {
        "arc_easy": {"alias": "arc_easy", "sample_len": 2000, "acc,none": 0.25, "acc_stderr,none": 0.012},
        "novel.txt": {"word_perplexity,none": 123456.0, "words": 7},
        "gsm8k": {"sample_len": 3, "exact_match,strict-match": 0.0, "exact_match_stderr,strict-match": "N/A"},
    }
    average = {"average": {"acc": 0.5, "acc_norm": 0.75}, "averaged": ["x"] * 7}
    assert table({"results": results, **average}).splitlines() == [
        "task       documents  metric                          value  standard error",
        "---------  ---------  --------------------------  ---------  --------------",
        "arc_easy       2,000  acc                            0.2500        ± 0.0120",
        "novel.txt             word_perplexity             1.235e+05",
        "gsm8k              3  exact_match (strict-match)     0.0000",
        "",
        "average of the paper's 7 accuracies: acc 0.5000, acc_norm 0.7500",
    ]


# --- generation


def plain_greedy(model, tokens, count):
    tokens = list(tokens)
    begin = 0
    for _ in range(count):
        begin = begin if len(tokens) - begin <= LENGTH else len(tokens) - LENGTH // 2
        tokens.append(int(log_softmax(model, tokens[begin:])[-1].argmax()))
    return tokens


@pytest.mark.slow
def test_greedy_text_is_the_likeliest_token_again_and_again(model):
    """In batches of any size, on past the end of what the model reads, from an empty text too."""
    contexts = ["A", "The longest of these beginnings, so that it is cut", "Some other text", ""]
    room = LENGTH - 20
    for rows in (None, 1, 3):
        texts = generate(model, contexts, Sampling(most=20), rows)
        for context, text in zip(contexts, texts, strict=True):
            prompt = list(context.encode())[-room:] or [0]
            written = plain_greedy(model, prompt, 20)[len(prompt) :]
            assert text == model.tokenizer.decode(written[: written.index(0)] if 0 in written else written)
    long = generate(model, ["A"], Sampling(most=70))[0]
    assert long.startswith(generate(model, ["A"], Sampling(most=20))[0])
    assert long == model.tokenizer.decode(plain_greedy(model, b"A", 70)[1:])


def test_a_text_ends_before_what_it_is_told_to_stop_at(model):
    whole = generate(model, ["Once"], Sampling(most=20))[0]
    ends = (whole[11:13], whole[6:8], "never")
    assert generate(model, ["Once"], Sampling(ends, 20)) == [whole[: min(whole.index(end) for end in ends[:2])]]
    assert _cut("abcdef", ("cd", "bcd", "")) == ("a", True)  # both are there with one token
    assert _cut("abcdef", ("x",)) == ("abcdef", False)


def test_a_text_ends_at_eos(model):
    """With another token for EOS: the fourth that it writes."""
    written = plain_greedy(model, b"Once", 9)[4:]
    tokenizer = dataclasses.replace(model.tokenizer, eos=written[3])
    text = generate(dataclasses.replace(model, tokenizer=tokenizer), ["Once"], Sampling(most=9))[0]
    assert text == model.tokenizer.decode(written[: written.index(written[3]) + 1])


@pytest.mark.slow
def test_draws_follow_the_softmax(model):
    """First tokens of 4,000 texts against the model's probabilities at that temperature; a seed gives the same."""
    tokens = [list(b"a")]
    logits = log_softmax(model, tokens[0])[-1] / 0.7
    p = np.exp(logits) / np.exp(logits).sum()
    sampling = Sampling(most=1, temperature=0.7, seed=3)
    texts = generate(model, ["a"] * 4000, sampling, 1000)
    top = [token for token in np.argsort(-p)[:6] if 0 < token < 128]
    shares = [np.mean([text == chr(token) for text in texts]) for token in top]
    assert len(top) > 1
    np.testing.assert_allclose(shares, p[top], atol=4 * np.sqrt(p[top].max() / 4000))
    assert generate(model, ["a"] * 50, sampling) == generate(model, ["a"] * 50, sampling)
    other = dataclasses.replace(sampling, seed=4)
    assert generate(model, ["a"] * 50, sampling) != generate(model, ["a"] * 50, other)


@pytest.mark.parametrize(
    ("options", "says"), [({"most": 0}, "must be >= 1, got 0"), ({"temperature": -1.0}, "temperature must be >= 0")]
)
def test_wrong_sampling(options, says):
    with pytest.raises(InputError, match=says):
        Sampling(**options)


# --- on meshes


def main():
    module.COMPILING = 0  # beginnings are shared
    alone = make_model()
    found = [[Window(window.tokens[:32], 3)] for window in some_windows(alone, 20) if len(window.tokens) > 4]
    found += [[window] for window in questions(np.random.default_rng(3))]
    contexts = ["A mesh", "of devices"]
    results = {}
    for name, shape in ({"none": None} | MESHES).items():
        mesh = shape and make_mesh(MeshConfig(*shape))
        model = alone.on_mesh(mesh) if mesh else alone
        scores = score(model, found)
        texts = generate(model, contexts, Sampling(most=3))
        results[name] = [[s.log_likelihood for s in scores], [s.greedy for s in scores], texts]
    print(json.dumps(results))


@pytest.fixture(scope="module")
def on_meshes():
    return on_eight_devices(__file__)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_gives_what_one_device_gives(on_meshes, name):
    for have, want in zip(on_meshes[name], on_meshes["none"], strict=True):
        assert have == want if not isinstance(have[0], float) else have == pytest.approx(want, rel=1e-4)


if __name__ == "__main__":
    main()
