"""Attention: what each kernel computes, which one is chosen, and what compilers for TPUs and GPUs are given.

Run as a script, on several devices: the largest differences between attention on a mesh and on one device.
"""

import importlib.util
import json
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight import on_eight_devices
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from representatives import few
from trees import largest

import growlm
from growlm import ModelConfig
from growlm.models import attention_blocks, kernels
from growlm.models.attention_blocks import attention_in_blocks
from growlm.models.decoder import Pass, measured
from growlm.models.kernels import attention
from growlm.models.sharding import AXES, BATCH, shardings_of

AUTO = (AxisType.Auto,) * len(AXES)
COLLECTIVE = re.compile(r"\b(all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)\b")


def random_inputs(batch, length, heads, kv_heads, head_dim, dtype=jnp.float32):
    """Queries, keys, values and the cotangent of what comes of them."""
    rng = np.random.default_rng(0)
    every = (heads, kv_heads, kv_heads, heads)
    return [jnp.asarray(rng.standard_normal((batch, length, some, head_dim)), dtype) for some in every]


def with_gradients(function, q, k, v, cotangent):
    output, backward = jax.vjp(function, q, k, v)
    return output, *backward(cotangent)


CASES = [(4, 4, 9), (4, 2, 9), (6, 1, 5), (3, 3, 1)]


@pytest.mark.parametrize(("heads", "kv_heads", "length"), CASES, ids=["MHA", "GQA", "MQA", "one"])
def test_attention_of_the_cpu_is_the_librarys(heads, kv_heads, length):
    q, *others = random_inputs(2, length, heads, kv_heads, 8)
    expected, found = (
        jax.jit(partial(with_gradients, function))(2 * q, *others)
        for function in (kernels._library_attention, attention)
    )
    chex.assert_trees_all_close(found, expected, atol=1e-5)
    np.testing.assert_allclose(found[0][:, 0], jnp.repeat(others[1], heads // kv_heads, axis=2)[:, 0], atol=1e-6)


@pytest.mark.parametrize("window", [1, 3, 9, 100])
def test_with_a_window_a_query_sees_its_last_positions(window):
    """By a softmax over those positions alone; a window as long as the sequence hides nothing."""
    q, k, v, cotangent = random_inputs(2, 9, 4, 2, 8)
    of_cpu, of_library = (partial(f, window=window) for f in (attention, kernels._library_attention))
    found, expected = (jax.jit(partial(with_gradients, f))(q, k, v, cotangent) for f in (of_cpu, of_library))
    chex.assert_trees_all_close(found, expected, atol=1e-5)
    keys, values = (np.repeat(x, 2, axis=2) for x in (k, v))
    for t in range(9):
        seen = slice(max(0, t + 1 - window), t + 1)
        weight = np.exp(np.einsum("bhe,bshe->bhs", q[:, t], keys[:, seen]) / np.sqrt(8))
        mean = np.einsum("bhs,bshe->bhe", weight / weight.sum(-1, keepdims=True), values[:, seen])
        np.testing.assert_allclose(found[0][:, t], mean, atol=1e-5)


@pytest.mark.parametrize("window", few([1, 100, 300], [100]))
def test_window_of_the_tpu_is_that_of_the_cpu(monkeypatch, window):
    monkeypatch.setattr(kernels, "_BLOCK", 128)
    inputs = random_inputs(1, 384, 2, 1, 64)
    splash = partial(kernels._splash_attention, window=window, interpret=True)
    cpu = partial(attention_in_blocks, window=window)
    expected, found = (jax.jit(partial(with_gradients, f))(*inputs) for f in (cpu, splash))
    chex.assert_trees_all_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("scores", [1, 8 * 30 * 6], ids=["one head at a time", "three heads at a time"])
def test_blocks_and_chunks_of_attention_are_the_whole(monkeypatch, window, scores):
    """Four blocks of queries, the last of them smaller, with documents across their borders."""
    monkeypatch.setattr(attention_blocks, "QUERIES", 8)
    monkeypatch.setattr(attention_blocks, "SCORES", scores)
    inputs = random_inputs(3, 30, 4, 2, 8)
    document_BT = np.stack([np.arange(30) // size for size in (7, 12, 30)])
    functions = (partial(f, window=window, document_BT=document_BT) for f in (attention, kernels._library_attention))
    found, expected = (jax.jit(partial(with_gradients, f))(*inputs) for f in functions)
    chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_a_block_meets_no_keys_that_it_does_not_see(monkeypatch):
    monkeypatch.setattr(attention_blocks, "QUERIES", 8)
    assert list(attention_blocks._blocks(20, None)) == [
        (slice(0, 8), slice(0, 8)),
        (slice(0, 16), slice(8, 16)),
        (slice(0, 20), slice(16, 20)),
    ]
    assert [keys.start for keys, _ in attention_blocks._blocks(20, 5)] == [0, 4, 12]


DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize("window", few([None, 3], [3]))
def test_within_documents_a_query_sees_what_it_would_see_of_its_document_alone(window):
    """Each document's outputs and gradients are those of attention on it alone."""
    q, k, v, cotangent = random_inputs(2, 9, 4, 2, 8)
    functions = (attention, kernels._library_attention)
    for function in (partial(f, window=window, document_BT=DOCUMENTS) for f in functions):
        found = jax.jit(partial(with_gradients, function))(q, k, v, cotangent)
        for row, documents in enumerate(DOCUMENTS):
            for document in set(documents.tolist()):
                own = (slice(row, row + 1), np.flatnonzero(documents == document))
                alone = with_gradients(partial(attention, window=window), *(x[own] for x in (q, k, v, cotangent)))
                chex.assert_trees_all_close(jax.tree.map(lambda x, own=own: x[own], found), alone, atol=1e-5)


def test_documents_of_the_tpu_are_those_of_the_cpu(monkeypatch):
    monkeypatch.setattr(kernels, "_BLOCK", 128)
    inputs = random_inputs(2, 384, 2, 1, 64)
    document_BT = np.stack([np.arange(384) // 100, np.arange(384) // 250])
    splash = partial(kernels._splash_attention, document_BT=document_BT, interpret=True)
    cpu = partial(attention_in_blocks, document_BT=document_BT)
    expected, found = (jax.jit(partial(with_gradients, f))(*inputs) for f in (cpu, splash))
    chex.assert_trees_all_close(found, expected, atol=1e-5, rtol=1e-5)


TPU_CASES = [
    (4, 2, 64, jnp.float32, 1e-5),
    (2, 2, 128, jnp.float32, 1e-5),
    (2, 1, 64, jnp.bfloat16, 0.03),  # both round what they multiply to 8 bits, in another order
]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "dtype", "tolerance"), few(TPU_CASES, TPU_CASES[:1]))
def test_attention_of_the_tpu_is_that_of_the_cpu(monkeypatch, heads, kv_heads, head_dim, dtype, tolerance):
    monkeypatch.setattr(kernels, "_BLOCK", 128)  # three blocks of queries and of keys
    inputs = random_inputs(1, 384, heads, kv_heads, head_dim, dtype)
    splash = partial(kernels._splash_attention, interpret=True)
    expected, found = (jax.jit(partial(with_gradients, f))(*inputs) for f in (attention_in_blocks, splash))
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    chex.assert_trees_all_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("length", "most", "block"), [(2048, 1024, 1024), (128, 1024, 128), (1152, 1024, 384)])
def test_blocks_divide_the_length(length, most, block):
    assert kernels._largest_block(length, most) == block


def traced(platform, heads=(4, 2), length=256, head_dim=64, dtype=jnp.bfloat16, lower=(), window=None, documents=False):
    """The program for 4 devices of that platform, which need not be here: its jaxpr, or what it is lowered to."""
    mesh = AbstractMesh((2, 1, 2), AXES, axis_types=AUTO, abstract_device=AbstractDevice("a device", None, platform))
    q, k = (jax.ShapeDtypeStruct((4, length, some, head_dim), dtype) for some in heads)
    document = jnp.zeros((4, length), jnp.int32) if documents else None
    with jax.sharding.use_abstract_mesh(mesh):
        asked = partial(attention, window=window, document_BT=document)
        program = jax.jit(partial(with_gradients, asked)).trace(q, k, k, q)
        return str(program.lower(lowering_platforms=lower).as_text() if lower else program.jaxpr)


def test_the_kernel_is_that_of_the_platform_that_is_compiled_for(monkeypatch):
    monkeypatch.setattr(kernels, "_KERNELS", {name: partial(ran, name) for name in ("cpu", "tpu", "gpu")})
    assert attention(*"qkv") == "cpu"
    for platform in ("tpu", "gpu", "cpu"):
        mesh = AbstractMesh((1, 1, 1), AXES, axis_types=AUTO, abstract_device=AbstractDevice("", None, platform))
        with jax.sharding.use_abstract_mesh(mesh):
            assert attention(*"qkv") == platform
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert attention(*"qkv") == platform
        with jax.default_device(jax.devices("cpu")[0]):
            assert attention(*"qkv") == "cpu"


def ran(name, q, k, v, window, document_BT):
    return name


@pytest.mark.parametrize(
    "other",
    [{"length": 200}, {"dtype": jnp.float16}, {"head_dim": 264}],
    ids=str,
)
def test_what_the_kernel_of_the_tpu_does_not_take_is_plain_xla(other):
    taken = {"length": 128, "dtype": jnp.float32, "head_dim": 256}
    assert "pallas_call" in traced("tpu", **taken)
    assert "pallas_call" not in traced("tpu", **taken | other)


CUDNN = "@__cudnn$fmhaSoftmax"


@pytest.fixture
def cudnn(monkeypatch):
    """A machine with cuDNN and a GPU of the capability that is set."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    kernels._has_flash_attention.cache_clear()
    yield lambda capability: monkeypatch.setattr(jax, "local_devices", lambda backend: [FakeGpu(capability)])
    kernels._has_flash_attention.cache_clear()


class FakeGpu:
    def __init__(self, compute_capability):
        self.compute_capability = compute_capability


def test_gpus_run_the_kernel_of_cudnn_on_the_part_that_each_has(cudnn):
    cudnn("9.0")
    program = traced("gpu", lower=("cuda",))
    assert re.findall(r"@__cudnn\S+(?=\()", program) == [CUDNN, CUDNN + "Backward"]
    assert "tensor<2x256x2x64xbf16>, tensor<2x256x1x64xbf16>" in program  # of 4 x 256 x 4 and 2 heads, over 2 x 1 x 2


def test_the_kernels_of_tpus_and_gpus_know_of_the_window(cudnn):
    cudnn("9.0")
    windows = {window: traced("gpu", lower=("cuda",), window=window) for window in (None, 100, 256)}
    lengths = {window: set(re.findall(r"sliding_window_length\\22: (\d+)", text)) for window, text in windows.items()}
    assert lengths == {None: {"0"}, 100: {"100"}, 256: {"0"}}
    assert "pallas_call" in traced("tpu", window=100)


@pytest.mark.parametrize(
    "other", [{"dtype": jnp.float32}, {"head_dim": 36}, {"head_dim": 136}, {"length": 255}], ids=str
)
def test_what_the_kernel_of_the_gpu_does_not_take_is_plain_xla(cudnn, other):
    cudnn("9.0")
    assert CUDNN not in traced("gpu", lower=("cuda",), **other)


def test_the_kernel_of_the_gpu_takes_documents_as_a_bias(cudnn):
    cudnn("9.0")
    assert CUDNN.replace("fmha", "fmhaScaleBias") in traced("gpu", lower=("cuda",), documents=True)


@pytest.mark.parametrize("capability", [None, "7.5"], ids=["no GPU", "T4"])
def test_without_a_gpu_that_has_flash_attention_it_is_plain_xla(cudnn, capability):
    if capability:
        cudnn(capability)
    assert CUDNN not in traced("gpu", lower=("cuda",))


def largest_differences():
    """Between output and gradients on a mesh, split by batch, by heads, by both or by none, and on one device."""
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2, 2), AXES, axis_types=AUTO)
    for batch, kv_heads in ((4, 2), (4, 1), (3, 2), (3, 1)):
        inputs = random_inputs(batch, 8, 4, kv_heads, 8)
        expected = with_gradients(attention_in_blocks, *inputs)
        with jax.set_mesh(mesh):
            found = jax.jit(partial(with_gradients, attention_in_blocks))(*inputs)
        yield float(np.max([largest(a - b) for a, b in zip(found, expected, strict=True)]))


@pytest.mark.slow
def test_split_over_a_mesh_it_is_the_same():
    differences = on_eight_devices(__file__)
    assert len(differences) == 4 and np.max(differences) < 1e-5


@pytest.fixture(scope="module")
def tpus():
    """A mesh (data 2, fsdp 1, tensor 2) of TPUs that are not here, v4 for having the least fast memory."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, which compiles for TPUs, is not installed: pip install 'jax[tpu]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")  # or it asks the cloud which TPU this is
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # or a second process of tests fails at a lock
        from jax.experimental import topologies

        chips = topologies.get_topology_desc("v4:2x2x1", platform="tpu", chip_config_name="megacore")
        yield Mesh(np.asarray(chips.devices).reshape(2, 1, 2), AXES, axis_types=AUTO)


def compiled(mesh, kv_heads, length, head_dim, dtype):
    """The text of attention, forward and backward, as compiled for the mesh."""
    tensor = "tensor" if kv_heads % 2 == 0 else None

    def array(heads, axis):
        sharding = NamedSharding(mesh, PartitionSpec(BATCH, None, axis))
        return jax.ShapeDtypeStruct((2, length, heads, head_dim), dtype, sharding=sharding)

    q, k = array(4, "tensor"), array(kv_heads, tensor)
    with jax.set_mesh(mesh):
        return jax.jit(partial(with_gradients, attention)).lower(q, k, k, q).compile().as_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "head_dim", "dtype"),
    [(256, 64, jnp.bfloat16), (2048, 128, jnp.float32), (2048, 256, jnp.float32)],
    ids=["small", "the largest blocks", "the largest heads"],
)
def test_the_compiler_for_tpus_takes_the_kernels_and_moves_nothing(tpus, length, head_dim, dtype):
    text = compiled(tpus, 2, length, head_dim, dtype)
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert not COLLECTIVE.findall(text)


@pytest.mark.slow
def test_the_test_can_see_a_collective(tpus):
    """One key head on two devices: were there none in the text, the pattern would be wrong."""
    assert COLLECTIVE.findall(compiled(tpus, 1, 128, 64, jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remat", "unroll", "calls"), [("none", 1, 2), ("attention", 1, 2), ("full", 1, 3), ("none", 3, 6), ("full", 3, 9)]
)
def test_the_model_compiled_for_tpus_runs_the_kernels_in_its_scan(tpus, remat, unroll, calls):
    """Written out, each layer has its own, and what is computed again is not taken for what there is already."""
    config = ModelConfig(layers=3, embed=128, heads=4, kv_heads=2, head_dim=64, mlp=256, vocab=512)
    params = jax.eval_shape(partial(growlm.init, config), jax.random.key(0))
    shardings = shardings_of(params, config, tpus)
    params = jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), params, shardings)
    tokens = jax.ShapeDtypeStruct((4, 129), jnp.int32, sharding=NamedSharding(tpus, PartitionSpec(BATCH)))
    with jax.set_mesh(tpus):
        how = Pass(jnp.bfloat16, remat, unroll=unroll)
        loss = jax.value_and_grad(lambda params, tokens: measured(config, params, tokens, how)[0])
        text = jax.jit(loss).lower(params, tokens).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == calls
    assert not re.findall(r"= bf16\[\d+,\d+,\d+,64\]\S* (all-gather|all-to-all)", text)


if __name__ == "__main__":
    print(json.dumps(list(largest_differences())))
