"""G_stack on a hybrid of Mamba and attention: a Samba of 4 layers to 12, the paper's appendix J in small.

    growlm sweep --config=experiments/samba.py:cpu --workdir=runs/samba/cpu-0 --config.seed=0

growlm counts periods of (Mamba, SwiGLU, attention, SwiGLU), two of the paper's layers each: 2 periods to 6. The base is
trained on 8 % of the budget's tokens, as the paper's on 8 of 100 billion; grown_late, ours, on 20 %, as in the other
experiments. Attention sees half of the context, as Samba's. Rates are quickstart's: none was searched for this model,
that of scratch_tuned neither. `:tiny`, narrower, takes less than a minute.

Cost, ESTIMATED and not measured: cpu 4.1e13 FLOPs, 11 minutes a seed on two idle cores, at quickstart's rate times the
1.6 by which a step of Samba took longer than one of a Llama of 12 layers; gpu 5.2e16 FLOPs, 6 minutes on one H100 at
15 % of its peak, which the recurrence may not reach.

What is expected (arXiv 2405.15319, appendix J, 410M parameters, one seed): the grown run at the loss of scratch for
fewer FLOPs, speed-up 58 to 62 %; of its 47 billion tokens an average accuracy of 46.2, of scratch's 50 billion 45.1.

Result: not run yet.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from growlm.training.recipe import scale

_CPU = {
    "architecture": "samba",
    "embed": 64,
    "channels": 128,
    "dt_rank": 4,
    "heads": 2,
    "kv_heads": 2,
    "head_dim": 32,
    "mlp": 176,
    "vocab": 256,
    "sliding_window": 64,
}
_WIDE = {"embed": 256, "channels": 512, "dt_rank": 16, "heads": 4, "kv_heads": 4, "head_dim": 64, "mlp": 704}
_NARROW = {"embed": 32, "channels": 64, "dt_rank": 2, "head_dim": 16, "mlp": 88, "sliding_window": 32}
WIDTHS = {"cpu": _CPU, "small": _CPU | _NARROW, "gpu": _CPU | _WIDE | {"sliding_window": 256}, "tiny": _CPU | _NARROW}


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant, tokens=1_400_000)
    size = replace(size, layers=6, widths=WIDTHS[variant])
    runs = {
        "grown": size.grown([size.base(0.08, size.model(2))], "g_stack"),
        "grown_late": size.grown([size.base(0.2, size.model(2))], "g_stack"),
    }
    return size.sweep("Samba: 2 periods stacked to 6", runs, size.controls(runs["grown_late"]))
