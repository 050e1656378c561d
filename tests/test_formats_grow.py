"""`growlm grow` on Hugging Face folders: piece by piece it is what growing the whole is, and transformers reads it."""

import dataclasses
import json
import shutil

import hugging_face as hf
import jax
import numpy as np
import pytest
import tiny
from representatives import few
from trees import exact_products, leaf_at, noisy

import growlm
from growlm import read_model, write_model
from growlm.__main__ import main
from growlm.commands.grow_checkpoint import describe_plan, plan_grow
from growlm.errors import InputError
from growlm.formats import growing
from growlm.formats.layout import from_stored
from growlm.formats.safetensors import SINGLE
from growlm.growth import ORDERS, PRESETS, SHRINKS, plan_growth
from growlm.growth.expand import draws, grow_params
from growlm.models import declared
from growlm.models.gemma3 import Gemma3Config
from growlm.models.gpt2 import Gpt2Config
from growlm.models.gpt_neox import GptNeoxConfig
from growlm.models.llama import SIZES
from growlm.models.mixtral import MixtralConfig
from growlm.models.olmo2 import Olmo2Config

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

SOURCE = growlm.ModelConfig(layers=4, embed=12, heads=4, kv_heads=2, head_dim=6, mlp=20, vocab=40, norm_eps=1e-3)
VARIANTS = {
    "llama": SOURCE,
    "qwen2": dataclasses.replace(SOURCE, qkv_bias=True, tie_embeddings=True),
    "qwen3": dataclasses.replace(SOURCE, qk_norm=True),
}
SHAPE = {name: value for name, value in dataclasses.asdict(SOURCE).items() if name in SIZES} | {"norm_eps": 1e-3}
OTHERS = {
    "phi3": SOURCE,
    "gpt2": Gpt2Config(layers=4, embed=12, heads=2, head_dim=6, mlp=20, vocab=40, positions=64, norm_eps=1e-3),
    "gpt_neox": GptNeoxConfig(layers=4, embed=12, heads=2, head_dim=6, mlp=20, vocab=40, rotary_dim=4, norm_eps=1e-3),
    "mixtral": MixtralConfig(**dataclasses.asdict(SOURCE), experts=2, experts_per_token=1),
    "olmo2": Olmo2Config(**SHAPE),
    "gemma3_text": Gemma3Config(**SHAPE, sliding_window=6, global_every=2),
}
WIDE = {"embed": 30, "heads": 9, "kv_heads": 3, "mlp": 33}
DOUBLE = {"embed": 24, "heads": 8, "kv_heads": 4, "mlp": 40}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of every variant, in two dtypes, the second in several files."""
    home = tmp_path_factory.mktemp("sources")
    for name, config in (VARIANTS | OTHERS).items():
        settings = {"model_type": name} if name == "phi3" else None  # else it is written as the first family that fits
        write_model(home / f"{name}-float32", config, noisy(config), settings=settings)
        half = {"dtype": "bfloat16", "shard": 5000}
        write_model(home / f"{name}-bfloat16", config, noisy(config, 1), settings=settings, **half)
    return home


def grow(source, output, *arguments):
    """The folder that the command writes; the source must be as it was."""
    before = tiny.snapshot(source)
    assert main(["grow", f"--source={source}", f"--output={output}", *arguments]) == 0
    assert tiny.snapshot(source) == before
    assert [path.name for path in output.parent.iterdir() if path.name.startswith(".")] == []
    return output


def grown_values(plan):
    """What is written of every weight, [layers, ...] as the tree has it, without a file."""
    tree = {}
    for tensor in plan.folder.tensors:
        place = plan.folder.places[tensor.name]
        pieces = [np.ascontiguousarray(make()).reshape(-1) for make in plan.folder.pieces(tensor)]
        stored = np.concatenate(pieces).reshape(tensor.shape)
        assert stored.dtype == tensor.dtype
        for weight, value in zip(place.weights, from_stored(place, plan.target, stored), strict=True):
            whole = tree.setdefault(weight.path, np.empty(weight.shape(plan.target), value.dtype))
            whole[place.unit] = value
    return tree


OPERATIONS = {
    "stack": ("direct", {}, {"layers": 8}),
    "interleave": ("direct", {"order": "interleave"}, {"layers": 7}),
    "a list": ("direct", {"order": [0, 1, 2, 1, 3, 2, 3, 3]}, {"layers": 8}),
    "zero_residual": ("direct", {"zero_residual": True}, {"layers": 6}),
    "width": ("direct", {}, WIDE),
    "both": ("direct", {}, WIDE | {"layers": 6}),
    "repeat": ("direct", {"select": "repeat"}, WIDE),
    "random copies": ("direct", {"select": "random", "split_imbalance": 0.5}, WIDE),
    "diagonal": ("direct", {"block_diagonal": True}, DOUBLE),
    "ragged diagonal": ("direct", {"block_diagonal": True}, {"mlp": 31}),
    "next layer": ("direct", {"aki": True}, WIDE | {"layers": 6}),
    "paper's norm": ("direct", {"norm": "gain"}, WIDE),
    "zeros": ("zero", {"fill": "zeros"}, WIDE | {"layers": 6, "vocab": 40}),
    "zero depth": ("zero", {}, {"layers": 8}),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(
    ("dtype", "piece"), few([("float32", 600), ("bfloat16", 10**6)], [("float32", 600)]), ids=["pieces", "whole"]
)
def test_piece_by_piece_it_is_what_growing_the_whole_is(folders, monkeypatch, name, dtype, piece):
    """But for the order of products with scales: rounding."""
    monkeypatch.setattr(growing, "PIECE_BYTES", piece)
    variant = sorted(VARIANTS)[len(name) % 3]
    check_pieces(folders / f"{variant}-{dtype}", dtype, *OPERATIONS[name])


@pytest.mark.parametrize("family", few(OTHERS, ["gpt_neox"]))
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("a list", "repeat", "ragged diagonal")])
def test_so_it_is_in_every_family(folders, monkeypatch, family, name):
    """Query, key and value side by side in one tensor; a tensor an expert."""
    number = sorted(OPERATIONS).index(name) % 2
    monkeypatch.setattr(growing, "PIECE_BYTES", (600, 10**6)[number])
    dtype = ("float32", "bfloat16")[number]
    operator, options, sizes = OPERATIONS[name]
    check_pieces(folders / f"{family}-{dtype}", dtype, operator, options, in_family(family, sizes))


def in_family(family, sizes):
    """The sizes of a growth of a Llama, as another family has them."""
    if family in ("gpt_neox", "gpt2"):
        sizes = {name: size for name, size in sizes.items() if name != "kv_heads"}
        return sizes | ({"heads": sizes["embed"] // 6} if "embed" in sizes else {})
    if family == "gemma3_text" and "heads" in sizes:  # of which transformers needs a divisor of the width
        return sizes | {"heads": 2 * sizes["kv_heads"]}
    return sizes | ({"experts": 4, "experts_per_token": 2} if "mlp" in sizes and family == "mixtral" else {})


def check_pieces(folder, dtype, operator, options, sizes):
    plan = plan_grow(folder, operator=operator, options=options, sizes=sizes)
    config, params = read_model(plan.source.folder)
    assert not draws(plan.growth, plan.target)
    expected = growlm.grow(params, config, plan.target, operator, plan.folder.key, **plan.resolved.options)
    found = grown_values(plan)
    assert found.keys() == {weight.path for weight in declared(plan.target)}
    for path, value in found.items():
        want = leaf_at(expected, path)
        rounding = 5e-7 if dtype == "float32" else 2**-8
        np.testing.assert_allclose(value.astype(np.float32), want, rtol=rounding, err_msg=path)
        assert value.dtype.name == dtype
        assert np.mean(value == want.astype(value.dtype)) > (0.5 if dtype == "float32" else 0.99), path


DRAWING = {
    "zero": ("zero", {}, WIDE | {"layers": 5, "vocab": 47}),
    "random": ("random", {}, WIDE | {"layers": 7}),
    "new tokens": ("direct", {}, {"vocab": 50, "embed": 30}),
    "noise": ("direct", {"noise": 0.25}, {"layers": 6}),
    "noise of the paper's scale": ("direct", {"noise": 0.25, "noise_scale": "paper"}, DOUBLE | {"layers": 12}),
    "noise on what is new": ("direct", {"noise": 0.25, "noise_on": "new"}, DOUBLE | {"layers": 6}),
    "noise that cancels": ("direct", {"noise": 0.25, "cancel": True}, DOUBLE | {"layers": 6, "vocab": 44}),
}


@pytest.mark.parametrize(
    ("family", "name"),
    few([*(("qwen3", name) for name in DRAWING), ("gpt2", "noise that cancels")], [("qwen3", "noise that cancels")]),
)
def test_what_is_drawn_is_drawn_where_it_is_when_the_whole_grows(folders, monkeypatch, family, name):
    """Other values, at the same places, at the same scale; the rest is the same; and no two pieces are alike."""
    monkeypatch.setattr(growing, "PIECE_BYTES", 1500)
    operator, options, sizes = DRAWING[name]
    sizes = in_family(family, sizes) if family in OTHERS else sizes
    plan = plan_grow(folders / f"{family}-float32", operator=operator, options=options, sizes=sizes)
    config, params = read_model(plan.source.folder)
    whole = jax.jit(lambda key: grow_params(plan.growth, config, plan.target, params, key))
    one, other = whole(jax.random.key(1)), whole(jax.random.key(2))
    for path, value in grown_values(plan).items():
        a, b = leaf_at(one, path), leaf_at(other, path)
        np.testing.assert_allclose(value[a == b], a[a == b], rtol=5e-7, err_msg=path)
        drawn = (value - a)[a != b]  # a difference of two draws, as a - b is
        if drawn.size > 200:
            assert np.std(drawn) == pytest.approx(np.std((a - b)[a != b]), rel=0.25), path
            assert len(np.unique(value[a != b])) > 0.9 * drawn.size, path
        assert np.all(value[a != b] != a[a != b]), path


GROWING = sorted(name for name in PRESETS if PRESETS[name].operator not in SHRINKS)


@pytest.mark.parametrize("preset", few(GROWING, ("hypercloning", "lemon", "llama_pro", "solar")))
def test_every_preset_grows_a_folder(folders, tmp_path, preset, capsys):
    """In depth, and in width where it is of width; what it claims is verified on the way."""
    deep = preset != "szp"
    sizes = ["--target.layers=8"] if deep else [f"--target.{name}={size}" for name, size in DOUBLE.items()]
    if PRESETS[preset].operator == "learn":
        assert main(["grow", f"--source={folders}/llama-float32", f"--output={tmp_path}/out", *sizes,
                     f"--operator={preset}"]) == 2  # fmt: skip
        assert "learns from batches" in capsys.readouterr().err
        return
    options = PRESETS[preset].options
    if isinstance(options.get("order"), list):
        sizes = [f"--target.layers={len(options['order'])}"]
        if max(options["order"]) >= SOURCE.layers:
            sizes.append(f"--option.order={[layer % SOURCE.layers for layer in options['order']]}")
    folder = grow(folders / "llama-float32", tmp_path / "out", f"--operator={preset}", *sizes)
    report = tiny.read_json(folder / "growth.json")
    verdict = tiny.read_json(folder / "verify.json")
    assert verdict["ok"] and verdict["function"]["claimed"] == report["preserves_function"]
    assert read_model(folder)[0].layers == report["target"]["layers"]
    assert preset in (folder / "README.md").read_text()


def test_a_ramp_is_left_out_and_not_claimed(folders):
    """config.json has no masks: what is fresh acts at once."""
    plan = plan_grow(folders / "llama-float32", operator="random", options={"mask_tokens": 1000}, sizes={"layers": 6})
    text = describe_plan(plan)
    assert plan.growth.masks is None and "not kept" in text


# --- with transformers ---


@pytest.mark.parametrize("name", hf.CASES)
def test_transformers_loads_what_grew_and_it_computes_the_same(name, tmp_path):
    """Depth and width at once, by zeros: every field of config.json must fit the weights; it generates."""
    source = hf.save(hf.make_model(name), tmp_path / "source")
    (source / "tokenizer.json").write_bytes(b"{}")
    mlp = 4 * 48 if name == "gpt2" else 64  # config.json goes on to leave it out
    sizes = [f"--target.{key}={value}" for key, value in {"layers": 5, "embed": 48, "mlp": mlp}.items()]
    heads = ["--target.heads=12", "--target.kv_heads=3"] if name != "tinyllama" else []
    heads = ["--target.heads=6"] if hf.FAMILIES[name][0] in hf.BASES else heads
    heads = [] if name.startswith(("olmo2", "olmo3", "olmoe")) else heads  # a norm over all of them
    # No gain that the head could undo; heads that fill the width.
    sizes = [size for size in sizes if not name.startswith(("olmo_tied", "olmoe")) or "embed" not in size]
    folder = grow(source, tmp_path / "grown", "--operator=zero", *sizes, *heads)
    before, after = hf.load(source), hf.load(folder)
    tokens = hf.random_tokens(96)
    np.testing.assert_allclose(hf.logits_of(after, tokens), hf.logits_of(before, tokens), atol=1e-4)
    assert (after.config.model_type, after.config.num_hidden_layers) == (before.config.model_type, 5)
    settings = tiny.read_json(folder / "config.json")
    assert len(settings.get("layer_types", [0] * 5)) == 5
    assert (folder / "tokenizer.json").read_bytes() == b"{}" and (folder / "generation_config.json").exists()
    torch, _ = hf.needed()
    made = after.generate(torch.from_numpy(tokens[:1, :5].astype(np.int64)), max_new_tokens=4, do_sample=False)
    assert made.shape[1] > 5


def test_stacked_layers_are_in_the_stated_order_and_dtypes_stay(tmp_path):
    """G_stack of a bfloat16 checkpoint in shards, read by transformers: layer i is layer i mod 3 to the bit."""
    model = hf.make_model("qwen2", "bfloat16")
    source = hf.save(model, tmp_path / "source", shard="20KB")
    folder = grow(source, tmp_path / "grown", "--operator=g_stack", "--factor=4")
    torch, transformers = hf.needed()
    grown = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert len(grown.model.layers) == 12
    for number, layer in enumerate(grown.model.layers):
        weights = zip(layer.parameters(), model.model.layers[number % 3].parameters(), strict=True)
        assert all(a.dtype == torch.bfloat16 and torch.equal(a, b) for a, b in weights)
    card = (folder / "README.md").read_text()
    assert "0 1 2 0 1 2 0 1 2 0 1 2" in card and "does not keep" in card and str(tmp_path) not in card


@pytest.mark.parametrize(("before", "after"), [(2, 3), (4, 9)], ids=["grouped", "each its own"])
def test_a_llama_whose_heads_divide_its_width_no_more_becomes_a_mistral(tmp_path, capsys, before, after):
    """With as many key-value heads as heads config.json may leave them out, and Mistral's default is 8."""
    source = hf.save(hf.make_model("llama3", num_key_value_heads=before), tmp_path / "source")
    arguments = "--target.embed=37", "--target.heads=9", f"--target.kv_heads={after}"
    assert main(["grow", f"--source={source}", *arguments, "--dry_run"]) == 0
    folder = grow(source, tmp_path / "grown", *arguments)
    says = "MistralForCausalLM, was LlamaForCausalLM: transformers' LlamaForCausalLM cannot have this shape"
    assert says in capsys.readouterr().out and says in (folder / "README.md").read_text()
    after, tokens = hf.load(folder), hf.random_tokens(96)
    assert after.config.model_type == "mistral"
    np.testing.assert_allclose(hf.logits_of(after, tokens), hf.logits_of(hf.load(source), tokens), atol=1e-4)


# --- the command ---


def test_a_grown_folder_asks_for_no_code(tmp_path):
    write_model(tmp_path / "small", SOURCE, noisy(SOURCE))
    (tmp_path / "small" / "checksums.json").unlink()
    code, files = {"auto_map": {"AutoModel": "evil.Model"}, "trust_remote_code": True}, {}
    config = tiny.read_json(tmp_path / "small" / "config.json")
    files["config.json"] = config | code | {"custom_pipelines": {"x": {"impl": "evil.P"}}}
    files["tokenizer_config.json"] = {"eos_token": "é", "nested": [code | {"kept": 1}]} | code
    files["tokenizer.json"] = {"model": {"vocab": {"auto_map": 0, "a": 1}}}  # a token of that name
    for name, value in files.items():
        # JSON may spell any letter in another way.
        (tmp_path / "small" / name).write_text(json.dumps(value).replace('"trust_', '"\\u0074rust_'))
    arguments = [f"--source={tmp_path}/small", f"--output={tmp_path}/big", "--target.layers=8"]
    assert main(["grow", *arguments]) == 0
    grown = {name: tiny.read_json(tmp_path / "big" / name) for name in files}
    assert not {*code, "custom_pipelines"} & grown["config.json"].keys()
    assert grown["config.json"]["num_hidden_layers"] == 8
    assert grown["tokenizer_config.json"] == {"eos_token": "é", "nested": [{"kept": 1}]}
    assert (tmp_path / "big" / "tokenizer.json").read_bytes() == (tmp_path / "small" / "tokenizer.json").read_bytes()


def test_dry_run_says_what_it_would_take_and_writes_nothing(folders, tmp_path, capsys):
    source = folders / "llama-bfloat16"
    assert main(["grow", f"--source={source}", "--factor=2", "--operator=llama_pro", "--dry_run"]) == 0
    out = capsys.readouterr().out
    config, _ = read_model(source)
    grown = growlm.models.parameter_count(dataclasses.replace(config, layers=8))
    for text in ("Hugging Face, llama", "llama_pro", "kept: every axis", f"{grown:,}", f"{2 * grown + 2**20:,}"):
        assert text in out, text
    assert list(tmp_path.iterdir()) == []


def test_seeds_give_other_copies(folders):
    def origins(seed):
        plan = plan_grow(folders / "llama-float32", options={"select": "random"}, sizes={"mlp": 40}, seed=seed)
        return plan.growth.maps["mlp"].origin.tolist()

    assert origins(1) == origins(1) != origins(2)
    assert origins(None) == origins(0)


BAD = {
    "nothing grows": ([], ("nothing grows",)),
    "smaller": (["--target.embed=6"], ("must be >= the source",)),
    "another family": (["--target.qk_norm=True"], ("qk_norm", "no growth changes")),
    "another window": (["--target.sliding_window=7"], ("sliding_window", "no growth changes")),
    "another rope": (["--target.rope_scaling={}"], ("rope_scaling",)),
    "unknown operator": (["--factor=2", "--operator=drect"], ("'drect'", "'direct'")),
    "unknown option": (["--factor=2", "--option.ordr=stack"], ("'ordr'", "'order'")),
    "learn": (["--factor=2", "--operator=learn"], ("learns from batches", "init_from", "growlm convert")),
    "optimizer": (["--factor=2", "--optimizer_state=map"], ("--optimizer_state", "weights alone")),
    "step": (["--factor=2", "--step=3"], ("--step", "weights alone")),
    "seed": (["--factor=2", "--seed=-1"], ("--seed", "-1")),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_argument_is_one_line_and_nothing_is_written(folders, tmp_path, capsys, case):
    arguments, parts = BAD[case]
    before = tiny.snapshot(folders)
    call = ["grow", f"--source={folders}/llama-float32", f"--output={tmp_path}/out", *arguments]
    assert main(call) == 2
    err = capsys.readouterr().err
    assert err.startswith("growlm: ") and len(err.splitlines()) == 1, err
    assert all(part in err for part in parts), err
    assert tiny.snapshot(tmp_path) == {} and tiny.snapshot(folders) == before


def test_a_claim_that_is_not_met_is_exit_code_1_and_no_folder(folders, tmp_path, capsys, monkeypatch):
    """A growth that is done wrong: one piece in a thousand is off."""
    right = growing.grow_part

    def wrong(growth, target, key, weight, unit, *rest):
        value = right(growth, target, key, weight, unit, *rest)
        return value * 1.5 if weight.path == "blocks/mlp/down" and unit == (1,) else value

    monkeypatch.setattr(growing, "grow_part", wrong)
    call = ["grow", f"--source={folders}/llama-float32", f"--output={tmp_path}/out", "--target.mlp=40"]
    assert main(call) == 1
    assert "not what its growth claims" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
    assert main([*call, "--no_verify"]) == 0
    assert not (tmp_path / "out" / "verify.json").exists()


def test_interrupted_it_leaves_no_folder(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(growing, "grow_part", interrupt)
    call = ["grow", f"--source={folders}/llama-float32", f"--output={tmp_path}/out", "--target.mlp=40"]
    assert main(call) == 130
    assert list(tmp_path.iterdir()) == []


def interrupt(*args, **rest):
    raise KeyboardInterrupt


def test_too_little_room_is_found_before_anything_is_written(folders, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert main(["grow", f"--source={folders}/llama-float32", f"--output={tmp_path}/out", "--factor=2"]) == 2
    assert "1,000" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_changes_while_it_is_read_is_one_line(folders, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folders / "llama-float32", source)
    plan = plan_grow(source, sizes={"mlp": 40})
    content = (source / SINGLE).read_bytes()
    for other in (content[:-8], content + bytes(8), b""):
        (source / SINGLE).write_bytes(other)
        with pytest.raises(InputError, match="has changed"):
            grown_values(plan)
    (source / SINGLE).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        grown_values(plan)


def test_orders_are_those_of_the_growth(folders):
    for order in ORDERS:
        layers = 6 if order in ("expand", "middle") else 7
        plan = plan_grow(folders / "llama-float32", options={"order": order}, sizes={"layers": layers})
        assert plan.growth.order == plan_growth("direct", plan.source.model, plan.target, order=order).order
        down, source = grown_values(plan)["blocks/mlp/down"], read_model(plan.source.folder)[1]["blocks"]["mlp"]["down"]
        np.testing.assert_array_equal(down, source[list(plan.growth.order)])
