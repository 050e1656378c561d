"""The chunked cross-entropy is the plain one, and never holds all logits.

Run as a script, on 8 devices: how far it is from the plain one of one device on meshes, and what it holds and sends.
"""

import json
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from eight import on_eight_devices
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from trees import exact_products

from growlm.models import loss
from growlm.models.loss import cross_entropy
from growlm.models.sharding import AXES, BATCH


def plain(x_ND, head_DV, target_BT, cap=None):
    logits_NV = loss.logits(x_ND, head_DV)
    logits_NV = logits_NV if cap is None else cap * jnp.tanh(logits_NV / cap)
    return optax.softmax_cross_entropy_with_integer_labels(logits_NV, target_BT.reshape(-1)).mean()


def drawn(batch, length, embed, vocab, dtype):
    """Hidden states, a head and targets: logits of about 1, as different as those of a model that has learned a bit."""
    rng = np.random.default_rng(0)
    x_ND = jnp.asarray(rng.standard_normal((batch * length, embed)), dtype)
    head_DV = jnp.asarray(rng.standard_normal((embed, vocab)) * embed**-0.5, dtype)
    return x_ND, head_DV, jnp.asarray(rng.integers(0, vocab, (batch, length)))


def with_gradients(function, x_ND, head_DV, target_BT, **cap):
    """The loss and its gradients, scaled on the way back; a power of two rounds nothing."""
    return jax.value_and_grad(lambda x, head: 4 * function(x, head, target_BT, **cap), argnums=(0, 1))(x_ND, head_DV)


@settings(max_examples=settings.default.max_examples // 30)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 7),
    embed=st.integers(1, 5),
    vocab=st.integers(1, 9),
    most=st.integers(1, 80),
    cap=st.sampled_from([None, 0.7]),
)
def test_any_chunks_give_the_plain_loss_and_gradients(batch, length, embed, vocab, most, cap):
    with jax.enable_x64(True), exact_products(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK", most)
        given = drawn(batch, length, embed, vocab, jnp.float64)
        functions = [partial(with_gradients, function, cap=cap) for function in (plain, cross_entropy)]
        both = jax.jit(lambda *given: (*(f(*given) for f in functions), 4 * cross_entropy(*given, cap=cap)))
        want, have, alone = both(*given)
    assert {leaf.dtype for leaf in jax.tree.leaves(have)} == {np.dtype(np.float64)}
    chex.assert_trees_all_close(have, want, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(alone, want[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("scale", [0.05, 1], ids=["fresh", "trained"])
@pytest.mark.parametrize(("dtype", "worse"), [(jnp.float32, 1.05), (jnp.bfloat16, 1.25)])
def test_rounding_is_that_of_the_plain_loss_and_of_products_of_16_bits(dtype, worse, scale, monkeypatch):
    """A fresh model's rows have one gradient by their targets, (1 / vocab - 1) / rows: its rounding is everybody's."""
    monkeypatch.setattr(loss, "CHUNK", 70 * 300)
    x_ND, head_DV, target_BT = drawn(10, 100, 64, 300, dtype)
    given = x_ND, head_DV * jnp.asarray(scale, dtype), target_BT
    with jax.enable_x64(True):
        exact = with_gradients(plain, *(leaf.astype(jnp.float64) for leaf in given[:2]), given[2])
        exact = jax.tree.map(np.asarray, exact)
    found = {name: with_gradients(function, *given) for name, function in (("ours", cross_entropy), ("plain", plain))}
    for number, expected in enumerate(jax.tree.leaves(exact)):
        have = {name: np.asarray(jax.tree.leaves(tree)[number], np.float64) for name, tree in found.items()}
        error = {name: np.linalg.norm(value - expected) / np.linalg.norm(expected) for name, value in have.items()}
        assert error["ours"] <= worse * error["plain"] + 1e-7


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_targets_may_be_any_integers(dtype):
    x_ND, head_DV, target_BT = drawn(2, 9, 5, 250, jnp.float32)
    given = x_ND, head_DV, np.asarray(target_BT, dtype)
    np.testing.assert_allclose(cross_entropy(*given), plain(x_ND, head_DV, target_BT), rtol=1e-6)


@pytest.mark.parametrize("target", [-1, 11, 255])
def test_a_target_outside_of_the_vocabulary_is_not_passed_over(target):
    """As if a corpus is of another tokenizer: a loss that looks like one would hide it."""
    x_ND, head_DV, target_BT = drawn(2, 9, 5, 11, jnp.float32)
    assert jnp.isfinite(cross_entropy(x_ND, head_DV, target_BT))
    assert jnp.isnan(cross_entropy(x_ND, head_DV, target_BT.at[1, 2].set(target)))


def compiled(function, *given):
    return jax.jit(function).lower(*given).compile()


def test_a_batch_that_fits_is_one_chunk():
    """The quickstart's: a loop of one round would only keep XLA from fusing."""
    program = compiled(partial(with_gradients, cross_entropy), *drawn(8, 128, 64, 256, jnp.float32))
    assert " while(" not in program.as_text()


@pytest.mark.parametrize("chunk", [2**40, 2**16])
def test_products_that_nobody_asks_for_are_not_made(chunk, monkeypatch):
    """One for the loss alone; where the hidden states or the head are constants, one for the gradient by the other."""
    monkeypatch.setattr(loss, "CHUNK", chunk)
    given = drawn(8, 128, 64, 256, jnp.float32)
    programs = (lambda *given: cross_entropy(*given), *(jax.grad(cross_entropy, wanted) for wanted in (0, 1, (0, 1))))
    texts = [compiled(program, *given).as_text() for program in programs]
    assert [len(re.findall(r"\bdot\(", text)) for text in texts] == [1, 2, 2, 3]
    assert all((" while(" in text) == (chunk == 2**16) for text in texts)


def test_the_logits_are_never_all_there(monkeypatch):
    """By the compiler's own account: the temporary bytes of differentiation are fewer than those of all logits."""
    given, whole = drawn(8, 256, 16, 4096, jnp.float32), 8 * 256 * 4096 * 4

    def temporary(chunk):
        monkeypatch.setattr(loss, "CHUNK", chunk)
        return compiled(partial(with_gradients, cross_entropy), *given).memory_analysis().temp_size_in_bytes

    assert temporary(4096 * 64) < whole / 8
    assert temporary(2**40) >= whole  # in one chunk they are: what is asked above can fail


COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\(")
BUFFER = re.compile(r"\w+\[([\d,]*)\]")
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)]
ROWS, EMBED, VOCAB, CHUNK = 1024, 8, 2048, 2**14
UNEVEN = {"rows": {"rows": ROWS - 2}, "vocab": {"vocab": VOCAB - 1}, "both": {"rows": ROWS - 2, "vocab": VOCAB - 1}}


def largest_sent(text: str) -> int:
    """Elements of the largest collective's result in a part of a program."""
    shapes = [shape for found in COLLECTIVE.finditer(text) for shape in BUFFER.findall(found[1])]
    return max((int(np.prod([int(size) for size in shape.split(",") if size])) for shape in shapes), default=0)


def inside_loops(text: str) -> str:
    """The bodies of the loops of a compiled program."""
    bodies = "|".join(map(re.escape, re.findall(r"body=%([\w.-]+)", text)))
    return "\n".join(re.findall(rf"^%(?:{bodies}) .*?^}}", text, re.MULTILINE | re.DOTALL)) if bodies else ""


def on_mesh(shape: tuple[int, ...], rows: int = ROWS, vocab: int = VOCAB) -> dict:
    """The same loss and gradients as on one device? And what its program is like."""
    given = drawn(rows, 1, EMBED, vocab, jnp.float32)
    want = jax.tree.leaves(jax.jit(partial(with_gradients, plain))(*given))
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3)
    head = PartitionSpec(None, "tensor") if vocab == VOCAB else PartitionSpec()
    batch = PartitionSpec(BATCH) if rows == ROWS else PartitionSpec()
    with jax.set_mesh(mesh):
        placed = jax.device_put(given, tuple(NamedSharding(mesh, spec) for spec in (batch, head, batch)))
        program = compiled(partial(with_gradients, cross_entropy), *placed)
        have = jax.tree.leaves(program(*placed))
    errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(map(np.asarray, have), want, strict=True)]
    text = program.as_text()
    return {
        "error": float(np.max(errors)),
        "temporary": program.memory_analysis().temp_size_in_bytes,
        "kinds": sorted({found[2] for found in COLLECTIVE.finditer(text)}),
        "sent": largest_sent(text),
        "sent_in_loop": largest_sent(inside_loops(text)),
        "loop": len(inside_loops(text)),
    }


def main():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK", CHUNK)
        results = {f"{shape}": on_mesh(shape) for shape in MESHES}
        results |= {name: on_mesh((2, 2, 2), **sizes) for name, sizes in UNEVEN.items()}
    print(json.dumps(results))


@pytest.fixture(scope="module")
def on_meshes():
    return on_eight_devices(__file__)


@pytest.mark.parametrize("case", [*map(str, MESHES), *UNEVEN])
def test_a_mesh_gives_what_one_device_gives(on_meshes, case):
    assert on_meshes[case]["error"] < 1e-6


@pytest.mark.parametrize("shape", MESHES)
def test_on_a_mesh_a_device_holds_chunks_and_sends_the_heads_gradient_once(on_meshes, shape):
    """In the loop only rows are sent: what every device knows of a chunk, and the gradient by its hidden states."""
    found, chunk_rows = on_meshes[f"{shape}"], CHUNK * shape[2] // VOCAB
    assert found["temporary"] < ROWS * VOCAB * 4 / 8 / 2
    assert found["kinds"] == ["all-reduce"]
    assert found["loop"]
    assert found["sent_in_loop"] == (chunk_rows * EMBED if shape[2] > 1 else 0)
    assert found["sent"] == (EMBED * VOCAB // shape[2] if shape[2] < 8 else found["sent_in_loop"])


if __name__ == "__main__":
    main()
