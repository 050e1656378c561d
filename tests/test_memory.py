"""Texts read on piece by piece: the logits are those of one forward pass over the whole, whatever the architecture."""

import dataclasses
from functools import partial

import jax
import numpy as np
import own_architecture
import pytest
from representatives import few

import growlm
from growlm.errors import InputError
from growlm.models import ARCHITECTURES, hidden_states
from growlm.models.loss import logits
from growlm.models.memory import new_memory, read_on

LENGTH = 13
# Pieces of a text of LENGTH tokens, by row of the batch: (tokens of the first, the second, ...); 0 of some.
PIECES = (7, 1, 0, 4, 1), (3, 1, 8, 0, 1), (0, 1, 1, 3, 8)

EXAMPLES = {name: one.config(**one.example) for name, one in ARCHITECTURES.items()}
CONFIGS = EXAMPLES | {
    "a window": dataclasses.replace(EXAMPLES["llama"], sliding_window=3, qkv_bias=True, qk_norm=True),
    "windows by layer": dataclasses.replace(EXAMPLES["gemma3_text"], layers=4, sliding_window=2, global_every=2),
    "a cap and windows": dataclasses.replace(EXAMPLES["gemma2"], layers=2, sliding_window=3),
    "norm scaling": dataclasses.replace(EXAMPLES["llama"], layers=3, norm_scaling=True),
    "a core run again": dataclasses.replace(EXAMPLES["looped"], passes=3),
    "two cores": dataclasses.replace(EXAMPLES["looped"], layers=6, cores=2),
    "taps and documents": EXAMPLES["samba"],
    "one tap": dataclasses.replace(EXAMPLES["samba"], taps=1, sliding_window=4),
    "no layers": dataclasses.replace(EXAMPLES["llama"], layers=0),
    "undeclared": own_architecture.OwnConfig(layers=2, embed=8, heads=2, head_dim=4, mlp=12, vocab=20, positions=16),
}


def in_pieces(config, params, tokens, pieces, document_end):
    """The logits at every position of every row, read as `pieces` says: one program, with padding in every row."""
    begin, found = np.zeros(len(tokens), np.int32), np.zeros((*tokens.shape, config.vocab), np.float32)
    memory = new_memory(config, len(tokens), LENGTH + 2)
    assert (memory.kept is None) == (not config.architecture.remembers)
    program = jax.jit(partial(read_on, config, document_end=document_end))
    for counts in np.asarray(pieces, np.int32).T:
        new = np.full((len(tokens), 8), 3, np.int32)  # padding is some token
        for row, (start, count) in enumerate(zip(begin, counts, strict=True)):
            new[row, :count] = tokens[row, start : start + count]
        x_BTD, head_DV, memory = program(params, memory, new, begin, counts)
        said = np.asarray(logits(x_BTD, head_DV, config.architecture.logit_cap(config)))
        for row, (start, count) in enumerate(zip(begin, counts, strict=True)):
            found[row, start : start + count] = said[row, :count]
        begin = begin + counts
    assert (begin == LENGTH).all()
    return found


@pytest.mark.parametrize("name", few(CONFIGS, ["llama", "samba", "undeclared"]))
def test_pieces_of_any_size_give_the_logits_of_the_whole(name):
    """Rows at different positions, with padding between; in some with attention within documents."""
    config = CONFIGS[name]
    params = jax.tree.map(moved, growlm.init(config, jax.random.key(0)))  # writers and heads that start at zero too
    tokens = np.random.default_rng(1).integers(0, config.vocab, (len(PIECES), LENGTH), np.int32)
    end = None if name in ARCHITECTURES else int(tokens[0, 4])
    x_ND, head_DV = hidden_states(config, params, tokens, document_end=end)
    whole = np.asarray(logits(x_ND, head_DV, config.architecture.logit_cap(config))).reshape(*tokens.shape, -1)
    scale = np.abs(whole).max()
    np.testing.assert_allclose(in_pieces(config, params, tokens, PIECES, end), whole, atol=1e-5 * scale)
    assert np.abs(whole[:, 1:] - whole[:, :-1]).max() > 1e-2 * scale


def moved(leaf):
    return leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)


def test_the_room_is_the_models():
    config = dataclasses.replace(EXAMPLES["gpt2"], positions=8)
    with pytest.raises(InputError, match="the length of a text"):
        new_memory(config, 1, 9)
