"""Published systems by their names, on one target and one budget.

    growlm sweep --config=experiments/systems.py:cpu --workdir=runs/systems/cpu-0 --config.seed=0
    growlm sweep --config=experiments/systems.py:cpu_looped --workdir=runs/systems_looped/cpu-0 --config.seed=0

Every run ends with the same 12 layers and takes the FLOPs of training these from scratch, what came before growth
included. Shares of the stages, growths, optimizer state and schedules are those of docs/recipes.md, which says what of
them is the paper's; batch and optimizer are one for all, and so is the peak rate but where a search finds each its own:
`:small --config.search.peak_lr=[4e-3,8e-3,1.6e-2]`, 1.6e14 FLOPs for three seeds.
`_looped` has Q Labs' three growths with Muon, each beside the same architecture from scratch, with 4 cores, with 4
passes and without a boundary: loop_grow is billed by stored parameters, so its passes are free. Searched from 5e-3 to
8e-2, `:small_looped` takes 2.9e13. `:tiny` takes minutes, to compile. What is not here, and why, is in `ELSEWHERE`.

Cost, ESTIMATED and not measured: cpu 1.7e14 FLOPs, 30 minutes a seed on two cores, at quickstart's rate, cpu_looped
3.1e13, 6 minutes; gpu 4.5e17, 50 minutes on one H100, at 15 % of its peak.

What is expected: stacking ahead of scratch, as in operators and growth_factor; even copies in width behind it, for they
stay copies (hypercloning). one_layer and zero_layer claim the most, 80 % of the compute, and grow latest; llama_pro
trains a quarter of its layers on 4 % of the tokens and should end as its base does. Nobody has compared them all at
equal cost. Of the looped ones, each ahead of its own target from scratch by 5 to 20 %, untied_grow the most, for that
is what arXiv 2609.19107 has of it five orders of magnitude above (8 to 18 %).

Result: not run yet.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from growlm.errors import check_name
from growlm.growth import PARTIAL
from growlm.training.recipe import SCALES, SIXFOLD, Scale, scale

SYSTEMS = (
    *("g_stack", "stackbert", "gradual_stacking", "midas", "lidas", "interpose", "solar", "llama_pro", "mslt"),
    *("zero_layer", "one_layer", "bert2bert_fpi", "bert2bert_aki", "bert2bert_two_stage", "ligo", "msg", "lemon"),
    *("staged_training", "hypercloning", "hypercloning_diagonal", "hypercloning_noisy", "szp", "sparkling"),
)
LOOPED = {  # the fields by which its targets differ, as published, and layers
    "untied_grow": (12, {"cores": 4, "injection": 1.0}),
    "loop_grow": (6, {"passes": 4, "injection": 0.7071}),
    "deep_vanilla_grow": (12, {"cores": 4}),
}
ELSEWHERE = {
    **{f"partial_{pattern}": "in stacking_order.py, from 6 layers to 24" for pattern in PARTIAL},
    **dict.fromkeys(
        ("orthogonal_experts", "sparse_upcycling", "drop_upcycling", "expert_upcycling"),
        "of mixtures of experts, whose target is another one",
    ),
    **dict.fromkeys(("tokenformer", "tokenformer_published"), "of an architecture of its own"),
    "spdf": "grows no size, and is in sparse.py",
    "inheritune": "makes a model smaller: it begins with twice the target",
}
SIZES = {
    "cpu": {"widths": SIXFOLD},
    "gpu": {"widths": SIXFOLD | {"embed": 384, "head_dim": 64, "mlp": 1056}},
    "small": {"widths": SIXFOLD | {"embed": 24, "head_dim": 4, "mlp": 66}, "tokens": 1_400_000},
    "tiny": {"widths": SIXFOLD | {"embed": 24, "head_dim": 4, "mlp": 66}, "tokens": 7_500},
}
MUON = {"optimizer": {"kind": "muon"}}  # as in arXiv 2609.19107, whose rule for the state is made for it


def get_config(variant: str = "cpu") -> ConfigDict:
    name, _, looped = variant.partition("_")
    check_name("variant", variant, [*SCALES, *(f"{known}_looped" for known in SCALES)])
    size = scale(name)
    size = replace(size, layers=12, **SIZES[name])
    if looped:
        return _looped(size)
    runs = {system: size.system(system) for system in SYSTEMS}
    # The same target in another parametrisation: that of the half of its widths, which it grows from.
    upscaled = replace(size, widths={**size.widths, "base_widths": size.half_widths()})
    runs["mup_upscaling"] = upscaled.system("mup_upscaling")
    controls = size.controls(size.grown([size.base(0.1)], "g_stack"))
    return size.sweep("Published systems at equal cost", runs, controls)


def _looped(size: Scale) -> ConfigDict:
    widths = {key: value for key, value in size.widths.items() if key != "kv_heads"}
    common = widths | {"architecture": "looped", "prelude": 2, "coda": 2, "residual_multiplier": 0.25}
    sizes = {
        system: replace(size, layers=layers, widths=common | own, tuned_lr=None)
        for system, (layers, own) in LOOPED.items()
    }
    runs = {system: its.system(system, **MUON) for system, its in sizes.items()}
    scratch = {system: its.scratch(**MUON) for system, its in sizes.items()}
    untied, *others = LOOPED
    controls = {f"scratch_{system}": (scratch[system], f"the target of {system} from scratch") for system in others}
    config = sizes[untied].sweep("Untied, looped and plain growth, each at its own cost", runs, controls)
    config.runs.scratch.stages = scratch[untied]["stages"]
    return config
