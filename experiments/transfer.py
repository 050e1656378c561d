"""Whether the best learning rate of a narrow model is that of one 8 times as wide, with a base and without.

    growlm sweep --config=experiments/transfer.py:cpu --workdir=runs/transfer/cpu-0 --config.seed=0

narrow has 2 layers of width 32. wide has width 256 in the standard parametrisation, wide_base in muP's, with narrow as
its base. All are searched over the same rates, on the same tokens, with a constant rate: the report shows the curves.
It is about rates and not about growth, so `grown` names wide_base. `:tiny` takes seconds, and shows nothing.

Cost, ESTIMATED and not measured: cpu 1.7e14 FLOPs, 28 minutes a seed on two cores, at quickstart's rate.

What is expected: the curve of wide_base has its lowest point where narrow has its own, and lies below it at every rate;
that of wide has it 4 to 8 times lower. Tensor Programs V (arXiv 2203.03466), figure 1.

Result: not run yet. On the toy grid of `tests/test_parametrization.py` (slow; 40 steps) the best rate of wide_base was
2 times narrow's, and that of wide 4 times lower.
"""

from ml_collections import ConfigDict

from growlm.errors import check_name

NARROW = {"embed": 32, "heads": 1, "kv_heads": 1, "mlp": 88}
REST = {"layers": 2, "head_dim": 32, "vocab": 256}
RATES = [2.0**power for power in range(-11, -3)]
TOKENS = {"cpu": 1_000_000, "tiny": 8_192}


def get_config(variant: str = "cpu") -> ConfigDict:
    check_name("variant", variant, TOKENS)
    wide = REST | {name: 8 * size for name, size in NARROW.items()}
    models = {"wide": wide, "wide_base": wide | {"base_widths": NARROW}, "narrow": REST | NARROW}
    config = ConfigDict({"title": "Whether rates transfer over widths", "corpus": "stdlib", "seed": 0})
    config.runs = {name: {"stages": (_stage(model, TOKENS[variant]),)} for name, model in models.items()}
    config.search = {"peak_lr": RATES if variant == "cpu" else RATES[::3]}
    config.baseline, config.grown = "wide", ("wide_base",)
    config.controls = {"narrow": "the base, where both parametrisations are one"}
    config.evaluation = {"batches": 16}
    return config


def _stage(model: dict, tokens: int) -> dict:
    schedule = {"kind": "constant", "peak_lr": RATES[0], "warmup_tokens": tokens // 50}
    return {"model": model, "tokens": tokens, "batch": 8, "length": 128, "schedule": schedule}
