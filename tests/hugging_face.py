"""Small checkpoints as transformers writes them, with random weights in which every one matters, and its logits."""

import os

import numpy as np
import pytest
from representatives import few

os.environ.setdefault("HF_HUB_OFFLINE", "1")

NO_TORCH = "PyTorch or transformers is not installed: make test installs both where it can"

BASE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
NEOX = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GPT2 = {
    "vocab_size": 96,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
BASES = {"gpt_neox": NEOX, "gpt2": GPT2}  # of families whose config is not named as Llama's
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# name -> (model_type, what its config has beside BASE, or beside that of BASES).
FAMILIES = {
    "llama2": ("llama", {"rope_theta": 10000.0}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama_linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}}),
    "tinyllama": ("llama", {"num_key_value_heads": 1, "head_dim": 16}),
    "smollm": ("llama", {"tie_word_embeddings": True, "hidden_size": 36, "num_attention_heads": 6}),
    "mistral": ("mistral", {"sliding_window": 8, "head_dim": 12}),
    "mistral_no_window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2_tied_window": (
        "qwen2",
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
    ),
    "qwen3": ("qwen3", {"head_dim": 12, "max_window_layers": 3}),
    "qwen3_tied": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "phi3": ("phi3", {"sliding_window": 8, "pad_token_id": 0}),
    "phi3_head_dim": ("phi3", {"head_dim": 12, "rope_theta": 100.0, "pad_token_id": 0}),
    "pythia": ("gpt_neox", {"rotary_pct": 0.5}),
    "neox_tied": ("gpt_neox", {"tie_word_embeddings": True, "rotary_pct": 1.0, "rotary_emb_base": 100.0}),
    "gpt2": ("gpt2", {}),
    "gpt2_untied": ("gpt2", {"tie_word_embeddings": False, "n_inner": 56, "activation_function": "gelu_pytorch_tanh"}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral_window": (
        "mixtral",
        {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 8, "head_dim": 12, "rope_theta": 100.0},
    ),
    "qwen3_moe": ("qwen3_moe", MOE | {"head_dim": 12}),
    "qwen3_moe_normalised": (
        "qwen3_moe",
        MOE | {"norm_topk_prob": True, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 8},
    ),
    "qwen2_moe": ("qwen2_moe", MOE | {"shared_expert_intermediate_size": 20}),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0}),
    "olmoe_normalised": (
        "olmoe",
        {"num_experts": 3, "num_experts_per_tok": 2, "norm_topk_prob": True, "rope_theta": 100.0, "pad_token_id": 0},
    ),
}

# Windows of 8 on all layers but every n-th, and rotary settings by kind of layer.
BY_LAYER = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
OF_OLMO3 = {kind: rope | {"rope_theta": 1000.0} for kind, rope in BY_LAYER.items()}
FAMILIES |= {
    "olmo": ("olmo", {"rope_theta": 1000.0}),
    "olmo_tied": ("olmo", {"tie_word_embeddings": True, "rope_theta": 100.0}),
    "olmo2": ("olmo2", {"rope_theta": 100.0}),
    "olmo2_tied": ("olmo2", {"tie_word_embeddings": True, "head_dim": 12}),
    "olmo3": ("olmo3", {"sliding_window": 8, "num_hidden_layers": 4, "rope_parameters": OF_OLMO3}),
    "olmo3_every_other": (
        "olmo3",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma": ("gemma", {"head_dim": 12, "rms_norm_eps": 1e-3}),
    "gemma_untied": ("gemma", {"head_dim": 8, "tie_word_embeddings": False}),
    "gemma2": (
        "gemma2",
        {"head_dim": 12, "sliding_window": 8, "query_pre_attn_scalar": 9, "final_logit_softcapping": 3.0,
         "attn_logit_softcapping": 2.0},
    ),
    "gemma2_uncapped": (
        "gemma2",
        {"head_dim": 8, "sliding_window": 8, "final_logit_softcapping": None, "attn_logit_softcapping": None,
         "tie_word_embeddings": False, "num_hidden_layers": 2},
    ),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 12, "sliding_window": 8, "query_pre_attn_scalar": 9, "rope_parameters": BY_LAYER,
         "sliding_window_pattern": 3},
    ),
    "gemma3_every_other": (
        "gemma3_text",
        {"head_dim": 8, "sliding_window": 8, "sliding_window_pattern": 2, "final_logit_softcapping": 3.0},
    ),
}  # fmt: skip

_FIRST = {kind: name for name, (kind, _) in reversed(FAMILIES.items())}
# All of them for tests; in `make test` plain layers, biases, LayerNorm beside each other, experts, windows.
CASES = few(FAMILIES, [_FIRST[kind] for kind in ("llama", "qwen2", "gpt_neox", "mixtral", "gemma3_text")])


def needed():
    """torch and transformers, or the test is skipped."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    return torch, pytest.importorskip("transformers", reason=NO_TORCH)


def make_model(name, dtype="float32", seed=0, **changes):
    """A model of transformers: no gain is one, no bias zero."""
    torch, transformers = needed()
    kind, own = FAMILIES[name]
    config = transformers.AutoConfig.for_model(kind, **BASES.get(kind, BASE) | own | changes)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.to(getattr(torch, dtype)).eval()


def save(model, folder, shard="5GB"):
    """The folder, as save_pretrained writes it."""
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def random_tokens(vocab, shape=(2, 40), seed=0):
    return np.random.default_rng(seed).integers(vocab, size=shape, dtype=np.int32)


def logits_of(model, tokens):
    """float32[batch, length, vocab], computed by transformers in float32."""
    torch, _ = needed()
    with torch.no_grad():
        return model.float()(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()


def load(folder):
    """A folder as transformers reads it, in float32; every weight must have found its place."""
    torch, transformers = needed()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()
