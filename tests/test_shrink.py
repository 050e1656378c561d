"""Growth undone, and models made smaller: in NumPy by the same maps, and by the command on both kinds of folders."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
import tiny
from oracle import KEY, TOKENS, apart, noisy
from representatives import few
from test_growth_exact import MODELS
from test_presets import state_of
from trees import noisy as noisy_float32

import growlm
from growlm import write_model
from growlm.__main__ import main
from growlm.errors import InputError
from growlm.formats.folder import open_folder
from growlm.growth import claim, describe, describe_lost, grow_state, lost, plan_growth, plan_undo, undo
from growlm.growth.expand import grow_params
from growlm.growth.state import map_optimizer_state
from growlm.models import LoopedConfig, SambaConfig, TokenformerConfig, map_weights

LLAMA = dataclasses.replace(MODELS["llama"], base_layers=None, norm_scaling=False)
PLAIN = {"llama": LLAMA, "own": MODELS["own"]}
DOUBLE = {"layers": 4, "embed": 14, "mlp": 12}
UNEVEN = {"layers": 5, "embed": 11, "mlp": 16}


def larger(config, sizes=UNEVEN, times=2):
    """More of every size that the architecture has; of layers as many as make whole cores or periods."""
    heads = {name: times * getattr(config, name) for name in ("heads", "kv_heads") if hasattr(config, name)}
    experts = {"experts": 8, "experts_per_token": 4} if hasattr(config, "experts") else {}
    sizes = {name: size for name, size in sizes.items() if hasattr(config, name)} | heads | experts
    if isinstance(config, LoopedConfig):
        sizes["layers"] = config.layers + config.cores
    if isinstance(config, SambaConfig):
        sizes |= {"periods": 5, "channels": 8, "dt_rank": 3}
    if isinstance(config, TokenformerConfig):
        sizes |= {"qkv_slots": 9, "mlp_slots": 20}
    return dataclasses.replace(config, **sizes)


def grown(source, target, operator="direct", dtype=np.float64, **options):
    """In NumPy: (source's parameters, target's, the growth's report as it is read from a file)."""
    growth, params = plan_growth(operator, source, target, KEY, **options), noisy(source, dtype)
    with jax.enable_x64(True):
        after = jax.tree.map(np.asarray, grow_params(growth, source, target, params, KEY))
    return params, after, json.loads(json.dumps(describe(growth, source, target)))


def assert_equal(have, want):
    """To the byte."""
    for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def assert_close(have, want, tolerance=1e-12):
    for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("undoes", ["direct", "zero"])
@pytest.mark.parametrize("name", MODELS)
def test_a_shrink_is_the_left_inverse_of_the_growth_that_leads_back(name, undoes):
    small = MODELS[name]
    large = larger(small)
    params, after, _ = grown(small, large, undoes)
    back = grow_params(plan_growth("shrink", large, small, undoes=undoes), large, small, after, None)
    assert_close(back, params)


@pytest.mark.parametrize(
    ("operator", "options", "sizes"),
    [
        ("direct", {}, DOUBLE),
        ("direct", {"order": "interleave", "zero_residual": True}, DOUBLE),
        ("direct", {"block_diagonal": True}, {"mlp": 12}),
        ("direct", {"aki": True, "norm": "none"}, DOUBLE),
        ("random", {"mask_tokens": 10, "order": "interleave"}, UNEVEN),
        ("zero", {"norm": "none"}, UNEVEN),
        ("zero", {"norm": "gain"}, {"mlp": 7, "layers": 3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "own"])
def test_where_scales_are_powers_of_two_undo_gives_every_byte_back(name, operator, options, sizes):
    small = PLAIN[name]
    large = larger(small, sizes, times=2 if "embed" in sizes else 1)
    params, after, report = grown(small, large, operator, np.float32, **options)
    assert_equal(undo(after, large, small, report), params)


@pytest.mark.parametrize(
    "options",
    few(
        [{"split_imbalance": 0.6}, {"select": "random"}, {"select": "repeat"}, {"noise": 0.3, "cancel": True}],
        [{"split_imbalance": 0.6}],
    ),
    ids=str,
)
@pytest.mark.parametrize("name", MODELS)
def test_undo_needs_nothing_but_the_report(name, options):
    """Unequal shares and copies drawn at random too: their factors are in it."""
    small = MODELS[name]
    large = larger(small)
    params, after, report = grown(small, large, **options)
    assert_close(undo(after, large, small, report), params)


def test_layers_are_those_of_the_order_or_of_a_list():
    large = dataclasses.replace(LLAMA, layers=6)
    small = dataclasses.replace(LLAMA, layers=3)

    def layers(order):
        return plan_growth("shrink", large, small, order=order).order

    assert layers("stack") == (0, 1, 2)
    assert layers("interleave") == (0, 2, 4)
    assert layers([5, 0, 3]) == (5, 0, 3)
    params = noisy(large)
    back = grow_params(plan_growth("shrink", large, small, order=[5, 0, 3]), large, small, params, None)
    np.testing.assert_array_equal(back["blocks"]["mlp"]["up"], params["blocks"]["mlp"]["up"][[5, 0, 3]])
    with pytest.raises(InputError, match="different layers"):
        layers([0, 0, 1])
    with pytest.raises(InputError, match="list of 3 layers"):
        layers([0, 1])


def test_what_was_trained_apart_is_averaged_and_its_loss_is_measured():
    small = dataclasses.replace(LLAMA, layers=1)
    large = dataclasses.replace(small, mlp=12)
    _, after, report = grown(small, large, dtype=np.float32)
    growth = plan_undo(report, large, small)
    assert not claim(growth, large, small)[0]

    untouched = lost(large, after, small, undo(after, large, small, report), TOKENS, growth)
    assert untouched["exact"] and untouched["weights"] == 0 and untouched["logits"] < 1e-5
    assert untouched["loss_after"] == pytest.approx(untouched["loss_before"], abs=1e-5)

    rng = np.random.default_rng(0)
    trained = map_weights(lambda w, leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), large, after)
    back = undo(trained, large, small, report)
    up, down = (trained["blocks"]["mlp"][name] for name in ("up", "down"))
    np.testing.assert_allclose(back["blocks"]["mlp"]["up"], (up[..., :6] + up[..., 6:]) / 2, atol=1e-6)
    np.testing.assert_allclose(back["blocks"]["mlp"]["down"], down[:, :6] + down[:, 6:], atol=1e-6)
    with_answer = np.concatenate([TOKENS, TOKENS[:, :1]], axis=1)  # for the last position, too
    found = lost(large, trained, small, back, with_answer, growth)
    assert not found["exact"] and 0.01 < found["weights"] < 1 and found["worst"].startswith("blocks/mlp/")
    assert found["logits"] == pytest.approx(apart(large, trained, small, back), rel=0.01)
    assert f"{found['loss_after']:.4f} after" in describe_lost(found) and found["worst"] in describe_lost(found)


@pytest.mark.slow
def test_moments_are_undone_like_gradients():
    small = dataclasses.replace(LLAMA, qk_norm=False)
    large = larger(small)
    state, optimizer = state_of(noisy_float32(small), noisy_float32(small, 1))
    after, report = grow_state(state, small, large, optimizer, optimizer_state="map")
    growth = plan_undo(json.loads(json.dumps(report)), large, small)
    back = map_optimizer_state(growth, large, after.opt_state, "map")
    assert isinstance(back, optax.ScaleByAdamState) and back.count == 7
    for have, want in ((back.mu, state.opt_state.mu), (back.nu, state.opt_state.nu)):
        assert_close(have, want, 1e-6)


REFUSED = {
    "noise": ("direct", {"noise": 0.2}, {"mlp": 12}, "initialisation noise is mixed in"),
    "a lift": ("direct", {}, {"tie_embeddings": False}, r"a lift came first \(untie\)"),
    "a layer left out": ("direct", {"order": [0, 0, 0]}, {"layers": 3}, "layer 1 was left out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_growth_that_hides_the_source_is_refused(name):
    operator, options, sizes, message = REFUSED[name]
    small = dataclasses.replace(LLAMA, tie_embeddings=name == "a lift")
    large = dataclasses.replace(small, **sizes)
    _, after, report = grown(small, large, operator, **options)
    with pytest.raises(InputError, match=message):
        undo(after, large, small, report)


def test_reports_of_other_shapes_versions_and_of_shrinks_are_refused():
    small, large = LLAMA, dataclasses.replace(LLAMA, mlp=12)
    _, after, report = grown(small, large)
    with pytest.raises(InputError, match="the target of the growth's report"):
        undo(after, dataclasses.replace(large, mlp=13), small, report)
    with pytest.raises(InputError, match="scales of its maps"):
        undo(after, large, small, {name: value for name, value in report.items() if name != "undo"})
    shrunk = describe(plan_growth("shrink", large, small), large, small)
    with pytest.raises(InputError, match="made the model smaller"):
        plan_undo(json.loads(json.dumps(shrunk)), small, large)
    with pytest.raises(InputError, match=r"model\.mlp must be <= the source's, 6, got 12"):
        growlm.growth.shrink(noisy(small), small, large)
    with pytest.raises(InputError, match="must be a shrink"):
        lost(small, noisy(small), large, after, TOKENS, plan_growth("direct", small, large))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "sizes", [{"layers": 4, "mlp": 24, "embed": 48, "heads": 16, "kv_heads": 8}, {"mlp": 17}], ids=str
)
def test_a_hugging_face_folder_is_undone_to_the_byte(tmp_path, capsys, dtype, sizes):
    source = dataclasses.replace(LLAMA, qkv_bias=False, embed=12)
    write_model(tmp_path / "small", source, noisy_float32(source), dtype=dtype)
    targets = [f"--target.{name}={size}" for name, size in sizes.items()]
    arguments = [f"--source={tmp_path}/small", f"--output={tmp_path}/large", "--no_verify", *targets]
    operator = ["--operator=direct", "--option.zero_residual=True"] if "embed" in sizes else ["--operator=zero"]
    assert main(["grow", *arguments, *operator]) == 0
    assert main(["grow", "--undo", f"--source={tmp_path}/large", f"--output={tmp_path}/back"]) == 0
    out = capsys.readouterr().out
    assert "when it is grown back: 0 (nothing is lost but rounding)" in out and "undoes" in out
    before, after = (open_folder(tmp_path / name) for name in ("small", "back"))
    assert before.model == after.model
    for name, tensor in before.tensors.items():
        assert tensor.read().tobytes() == after.tensors[name].read().tobytes(), name
    verdict = tiny.read_json(tmp_path / "back" / "verify.json")
    assert verdict["loss_after"] == pytest.approx(verdict["loss_before"], abs=1e-4)
    assert "shrunk from" in (tmp_path / "back" / "README.md").read_text()
    assert main(["grow", "--undo", f"--source={tmp_path}/small", f"--output={tmp_path}/no"]) == 2
    assert "must be a model that growlm grew" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 2 steps of one layer, and of 2 of two wider ones; a checkpoint at every second step."""
    home = tmp_path_factory.mktemp("run")
    wide = tiny.MODEL | {"layers": 2, "mlp": 48}
    stages = tiny.stage(2), tiny.stage(2, growth={"operator": "direct", "options": {"zero_residual": True}}, model=wide)
    keep = {"checkpoint": {"every_tokens": 2 * tiny.STEP, "max_to_keep": 9}}
    tiny.write_config(home / "run.py", tiny.run(tiny.write_corpus(home), *stages, **keep))
    assert main(["train", f"--config={home}/run.py", f"--workdir={home}/work"]) == 0
    return home / "work"


@pytest.mark.slow
def test_a_run_is_undone_to_the_shape_before_its_growth(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = tiny.load_saved(run, 2)[2]
    assert main(["grow", "--undo", f"--source={run}", "--output=undone"]) == 0
    out = capsys.readouterr().out
    assert "trained for 2 steps since" in out and "worst: " in out
    model, _, state = tiny.load_saved(tmp_path / "undone")
    assert (model.layers, model.mlp, state.step) == (1, 24, 4)
    moved = np.abs(state.params["blocks"]["mlp"]["up"] - before.params["blocks"]["mlp"]["up"])
    assert 0 < moved.max() < 0.1

    # Grown by the command and not trained since: every byte, of the source's moments too if they were mapped.
    arguments = ["grow", f"--source={run}", "--step=2", "--target.layers=3", "--target.mlp=48", "--no_verify"]
    assert main([*arguments, "--output=grown", "--optimizer_state=map"]) == 0
    assert main(["grow", "--undo", "--source=grown", "--output=back", "--optimizer_state=map"]) == 0
    assert_equal(tiny.load_saved(tmp_path / "back")[2].params, before.params)
    assert_close(tiny.load_saved(tmp_path / "back")[2].opt_state, before.opt_state, 1e-7)
    assert main(["grow", f"--source={run}", "--operator=inheritune", "--factor=0.5", "--output=half"]) == 0
    half, whole = tiny.load_saved(tmp_path / "half")[2], tiny.load_saved(run)[2]
    assert_equal(half.params["blocks"], jax.tree.map(lambda leaf: leaf[:1], whole.params["blocks"]))


BAD = {
    "both": (["--undo", "--operator=zero"], "--undo and --operator must not be given both"),
    "a seed": (["--undo", "--seed=0"], "--undo and --seed must not be given both"),
    "a factor": (["--undo", "--factor=0"], "--undo and --factor must not be given both"),
    "not grown": (["--undo", "--step=2"], "must be a model that growlm grew"),
    "larger": (["--operator=shrink", "--target.layers=3"], "model.layers must be <= the source's, 2, got 3"),
    "unasked": (["--target.layers=1"], "model.layers must be >= the source's, 2, got 1"),
    "factor": (["--operator=shrink", "--factor=0.3"], "a factor of which 2 layers are whole layers"),
    "share": (["--operator=shrink", "--factor=2"], "--factor must be >= 0 and <= 1, got 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_shrink_is_one_line(run, tmp_path, capsys, name):
    arguments, message = BAD[name]
    assert main(["grow", f"--source={run}", f"--output={tmp_path}/no", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
