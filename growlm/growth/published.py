"""The table of published systems, a row each. What a row says of budgets and rates is used by runs of it by name."""

import dataclasses
from typing import Any

from growlm.growth.depth import PARTIAL, partial_order
from growlm.growth.preset import STILL, Preset, growing, parts
from growlm.models import Kind, LoopedConfig, ModelConfig, TokenformerConfig
from growlm.models.looped import before_growth
from growlm.models.tokenformer import half_the_slots

# The mask schedule of the G_stack authors' MSG code: 5000 steps of 1024 x 2048 tokens.
_MASK_TOKENS = 5000 * 1024 * 2048

_SIXTHS = parts("1/6 2/6 3/6 4/6 5/6 1")
_FPI = {"order": "stack_top", "select": "random", "norm": "none"}
_HYPERCLONING = "arXiv 2409.12903, HyperCloning"
_ONE_RATE = "one peak rate for both stages"
_BASE = "a fifth of the tokens before growth"


def _llama_pro(layers: int) -> tuple[float, ...]:
    """One new layer after every four, or after the next smaller number that the target allows."""
    every = next((number for number in (5, 4, 3, 2) if layers % number == 0), 5)
    return layers - layers / every, layers


def _learning(tokens: int, steps: int) -> dict[str, Any]:
    """LiGO's 100 steps, with half of them for warm-up, but no more than 2 % of the budget."""
    learned = max(min(100, steps // 50), 1)
    return {"steps": learned, "warmup": learned // 2}


_LOOPS = "arXiv 2609.19107"
_IN_PLACE = "between prelude and coda; what is carried keeps its moments, copies start without; a re-warm of 40 steps"


def _with_base(target: ModelConfig) -> ModelConfig:
    """The target with half of its stream and inner widths as its base."""
    widths = target.architecture.of_kind(Kind.STREAM, Kind.INNER)
    return dataclasses.replace(target, base_widths={axis.field: target.size(axis) // 2 for axis in widths})


def _looped(**cores: Any) -> LoopedConfig:
    """Two layers of prelude and of coda, and cores of two."""
    layers = 4 + 2 * cores.get("cores", 1)
    return LoopedConfig(layers, embed=12, heads=6, head_dim=2, mlp=18, vocab=5, prelude=2, coda=2, **cores)


def _linear(decay: float) -> dict[str, Any]:
    """To zero, linearly, over the last part of the tokens."""
    return {"kind": "wsd", "decay": decay, "end_lr_ratio": 0.0}


_TOKENFORMER = TokenformerConfig(
    2, embed=12, heads=6, head_dim=2, qkv_slots=12, out_slots=12, mlp_slots=24, vocab=5, rotary_dim=2
)
# A published system is one row.
_ROWS = (
    Preset(
        "g_stack",
        "arXiv 2405.15319 (NeurIPS 2024), G_stack",
        published="The whole list of layers, g = 4 times, in one growth, with a new optimizer and a new cosine.",
        ours=f"A tenth of the tokens before growth, where the paper has a law; {_ONE_RATE}, the base's constant.",
        options={"order": "stack"},
        depths=parts("1/4 1"),
        shares=(0.1, 0.9),
        rates="constant",
    ),
    *(
        Preset(
            f"partial_{pattern}",
            "arXiv 2405.15319, partial stacking",
            published=f"The layer list, of connection rate {rate:.1f} % as it is printed.",
            ours="Budgets and rates of g_stack.",
            options={"order": partial_order(pattern)},
            depths=parts("1/4 1"),
            shares=(0.1, 0.9),
            rates="constant",
        )
        for pattern, rate in PARTIAL.items()
    ),
    Preset(
        "interpose",
        "arXiv 2510.08008 (ICML 2026), orthogonal growth",
        published="Every layer twice in place, late, with a new optimizer.",
        ours="Half of the tokens before growth. Not built: sparing the first and last layers.",
        options={"order": "interleave"},
        depths=parts("1/2 1"),
    ),
    Preset(
        "orthogonal_experts",
        "arXiv 2510.08008 (ICML 2026), orthogonal growth in width",
        published="Twice the experts and twice the chosen ones, routers copied with noise of 0.01 of their standard "
        "deviation on the copies, a new optimizer. Without the noise the function is kept.",
        ours="Half of the tokens before growth.",
        options={"router_noise": 0.01},
        experts=parts("1/2 1"),
        chosen=parts("1/2 1"),
    ),
    Preset(
        "sparse_upcycling",
        "arXiv 2212.05055 (ICLR 2023), sparse upcycling",
        published="Every MLP becomes copies of itself, routers are fresh, all else is copied, normalised weights keep "
        "the function, the schedule goes on; a new optimizer, as for its language models.",
        ours="In every layer, where the paper has every second; the scale of routers; half of the tokens before. The "
        "first stage is a mixture of one expert: a dense model, lifted.",
        experts=lambda experts: (1, experts),
        rates="continue",
    ),
    Preset(
        "drop_upcycling",
        "arXiv 2502.19261 (ICLR 2025), Drop-Upcycling",
        published="Half of every expert's units drawn anew, one set for all three matrices, with the mean and standard "
        "deviation of what they replace; a new optimizer and schedule.",
        ours="Routers normal, not uniform; half of the tokens before. The published script draws a set a matrix.",
        options={"drop_units": 0.5},
        experts=lambda experts: (1, experts),
    ),
    Preset(
        "expert_upcycling",
        "arXiv 2604.19835, expert upcycling",
        published="Twice the experts, routers and moments copied, as many chosen as before.",
        ours="Each is copied once: the paper's greedy choice is expert_order, by growth.mixtures.order_by_norm. One "
        "order for all layers, noise on copied routers in place of noise on their biases, half of the tokens before.",
        options={"router_noise": 0.01},
        optimizer_state="map",
        experts=parts("1/2 1"),
        rates="continue",
    ),
    Preset(
        "stackbert",
        "ICML 2019 (Gong et al.), progressive stacking",
        published="Doublings 3-6-12 after 50 and 70 thousand steps, a new optimizer, and a learning rate that falls "
        "through all stages without another warm-up (its training script).",
        ours="280 thousand steps at the end, where the script allows 800, and the target's schedule.",
        options={"order": "stack"},
        depths=parts("1/4 1/2 1"),
        shares=(50, 70, 280),
        rates="continue",
        layers=12,
    ),
    Preset(
        "gradual_stacking",
        "ICML 2023 (Reddi et al.), gradual stacking",
        published="Every stage repeats its last b layers.",
        ours="b is a sixth of the target, all stages have equal tokens, one schedule runs over all, the optimizer is "
        "new: none of it was checked against the paper.",
        options={"order": "top"},
        depths=_SIXTHS,
        rates="continue",
    ),
    Preset(
        "mslt",
        "arXiv 2011.13635, MSLT (progressively stacking 2.0)",
        published="Copies of the top layers; a stage trains only these and what is above them, the last stage all.",
        ours="Half of the tokens for the last stage, the rest in equal parts; a new optimizer, for the head too.",
        options={"order": "top"},
        depths=parts("1/4 1/2 3/4 1 1"),
        shares=(1, 1, 1, 1, 4),
        frozen_below=True,
        layers=12,
    ),
    Preset(
        "bert2bert_fpi",
        "arXiv 2110.07143 (ACL 2022), bert2BERT FPI",
        published="Added coordinates copy random ones, readers divide by the number of copies, norms are copied, which "
        "changes the function; depth is stacked with the remainder from the top; a new optimizer.",
        ours=f"{_BASE.capitalize()}: the paper starts from models trained to their end. norm='isometry' is exact in "
        "width.",
        options=_FPI,
        depths=parts("1/2 1"),
        widths=parts("2/3 1"),
        shares=(0.2, 0.8),
        layers=12,
    ),
    Preset(
        "bert2bert_aki",
        "arXiv 2110.07143 (ACL 2022), bert2BERT AKI",
        published="FPI, with added matrix columns from the next layer, in the last layer from itself.",
        ours=f"{_BASE.capitalize()}.",
        options=_FPI | {"aki": True},
        depths=parts("1/2 1"),
        widths=parts("2/3 1"),
        shares=(0.2, 0.8),
        layers=12,
    ),
    Preset(
        "bert2bert_two_stage",
        "arXiv 2110.07143 (ACL 2022), bert2BERT, two-stage pre-training",
        published="AKI, and of two stages after it one trains the top of a sampled sub-model (with head and last norm; "
        "the embedding with the first), one all.",
        ours=f"Thirds, equal probabilities, what is not sampled keeps its moments; {_BASE}, a tenth of sub-models.",
        options=_FPI | {"aki": True},
        depths=parts("1/2 1 1"),
        widths=parts("2/3 1"),
        shares=(0.2, 0.1, 0.7),
        submodels=3,
        layers=12,
    ),
    Preset(
        "ligo",
        "arXiv 2303.00980 (ICLR 2023), LiGO",
        published="The maps and how they are tied; about 100 steps of learning them.",
        ours="By AdamW as the G_stack authors have it, from rows of the identity, for 2 % of the budget where that is "
        f"less; {_BASE}.",
        operator="learn",
        by_budget=_learning,
        depths=parts("1/2 1"),
        widths=parts("2/3 1"),
        shares=(0.2, 0.8),
        layers=12,
    ),
    Preset(
        "msg",
        "arXiv 2305.02869 (ICLR 2024), MSG",
        published="Masks from 0 to 1 one after the other, norms over unmasked coordinates, zero moments for new ones, "
        "the step kept, the rate back at its peak without warm-up.",
        ours="One growth, of FFN, stream and heads in turn, with fresh layers, as the G_stack authors have it (5000 "
        f"steps of masks; here a tenth of the budget); {_BASE}. MSG searches a schedule of several and copies layers.",
        operator="random",
        options={"mask_tokens": _MASK_TOKENS, "in_turn": True, "whole_blocks": True},
        by_budget=lambda tokens, steps: {"mask_tokens": tokens // 10},
        optimizer_state="map",
        depths=parts("1/2 1"),
        widths=parts("1/2 1"),
        shares=(0.2, 0.8),
        rates="rewind",
    ),
    Preset(
        "lemon",
        "arXiv 2310.07999 (ICLR 2024), LEMON",
        published="Copies with unequal read weights that sum to 1, added layers with zero residual writers; the usual "
        "peak rate and a shorter decay.",
        ours=f"Scaled copies on the stream instead of means or zeros; a new optimizer; {_BASE}.",
        unknown="How unequal: the imbalance of 0.5 is ours. Learning rates.",
        options={"order": "interleave", "zero_residual": True, "split_imbalance": 0.5},
        depths=parts("1/2 1"),
        widths=parts("1/2 1"),
        shares=(0.2, 0.8),
        layers=12,
    ),
    Preset(
        "hypercloning",
        f"{_HYPERCLONING} (symmetric)",
        published="For whole factors W becomes W/k in k x k places; a new optimizer.",
        ours="Other factors, which it refuses, grow by scaled copies; a tied head stays tied, with its factor in the "
        f"last norm; {_BASE}.",
        widths=parts("1/2 1"),
        shares=(0.2, 0.8),
    ),
    Preset(
        "hypercloning_diagonal",
        f"{_HYPERCLONING} (diagonal)",
        published="For whole factors W becomes W k times on the diagonal; the head, which writes no copies, W/k.",
        ours=f"{_BASE.capitalize()}.",
        options={"block_diagonal": True},
        widths=parts("1/2 1"),
        shares=(0.2, 0.8),
    ),
    Preset(
        "hypercloning_noisy",
        f"{_HYPERCLONING} (noisy symmetric)",
        published="Noise that cancels among copies.",
        ours="Its size: 0.316 is 10 dB below the target's initial values, where the paper's is below the weights "
        f"themselves; for 2 copies 0.71 of it is left. {_BASE.capitalize()}.",
        options={"noise": 0.316, "cancel": True},
        widths=parts("1/2 1"),
        shares=(0.2, 0.8),
    ),
    Preset(
        "staged_training",
        "arXiv 2203.06211 (ICML 2022), staged training",
        published="W twice on the diagonal, moments by the dual map (m/2, v/4), step kept, the schedule goes on. Added "
        "layers have zero attn/out and mlp/down, the paper's zero norm gains.",
        ours=f"Moments off the diagonal are m/2 and v/4 too, which is their gradient; its code has 0, and plain copies "
        f"of layers. {_BASE.capitalize()}, where the paper grows by the slope of the loss.",
        options={"order": "interleave", "zero_residual": True, "block_diagonal": True},
        optimizer_state="map",
        depths=parts("1/2 1"),
        widths=parts("1/2 1"),
        shares=(0.2, 0.8),
        rates="continue",
    ),
    Preset(
        "llama_pro",
        "arXiv 2401.02415 (ACL 2024), LLaMA Pro",
        published="After every m-th layer a copy with zero attn/out and mlp/down; only the copies train, on 80 billion "
        "tokens after 2 trillion.",
        ours="m is 4 where the target has a multiple of 5 layers, else 3, 2 or 1. The corpus stays the same.",
        operator="zero",
        options={"order": "expand"},
        train="new",
        depths=_llama_pro,
        shares=(2000, 80),
        layers=40,
    ),
    Preset(
        "solar",
        "arXiv 2312.15166, SOLAR depth up-scaling",
        published="The first 24 and the last 24 of 32 layers; weights only, a new optimizer.",
        ours="Half of the tokens before growth.",
        unknown="Tokens and rates after it.",
        options={"order": "overlap"},
        depths=parts("2/3 1"),
        layers=48,
    ),
    Preset(
        "midas",
        "arXiv 2409.19044 (NeurIPS 2024), MIDAS",
        published="The middle one of n blocks repeated, moments with it; stage i has a share of i^a (PROP-a).",
        ours="Six stages, a = 1, one schedule over all.",
        unknown="a and the size of a block as they were used.",
        options={"order": "middle"},
        optimizer_state="map",
        depths=_SIXTHS,
        shares=growing(6, 1),
        rates="continue",
    ),
    Preset(
        "lidas",
        "arXiv 2512.08819, LIDAS",
        published="The central block repeated where L - b is even, moments with it.",
        ours="Other roundings, six stages with the budgets of midas, one schedule over all.",
        options={"order": "centre"},
        optimizer_state="map",
        depths=_SIXTHS,
        shares=growing(6, 1),
        rates="continue",
    ),
    Preset(
        "zero_layer",
        "arXiv 2511.04981 (ICML 2026), zero-layer expansion",
        published="No layer at first, after 80 % of the steps all at once, freshly initialised, at one rate within a "
        "wsd schedule whose last 10 % decay to 0.",
        ours="AdamW, or what the config says, for its Muon-NSGD and muP scaling.",
        unknown="The state of new layers: here moments of zero, of age 0.",
        operator="random",
        optimizer_state="map_aged",
        depths=parts("0 1"),
        shares=(0.8, 0.2),
        rates="continue",
        schedule=_linear(0.1),
        layers=60,
    ),
    Preset(
        "one_layer",
        "arXiv 2511.04981 (ICML 2026), one-layer expansion",
        published="One layer at first, copies of it after 80 % of the steps, as zero_layer.",
        ours="As zero_layer.",
        unknown="The state of new layers: here copies keep the moments.",
        options={"order": "stack"},
        optimizer_state="map",
        depths=lambda layers: (1, layers),
        shares=(0.8, 0.2),
        rates="continue",
        schedule=_linear(0.1),
        layers=60,
    ),
    Preset(
        "inheritune",
        "arXiv 2404.08634, Inheritune",
        published="The first half of the layers, embedding, last norm and head, with a new optimizer.",
        ours="Half of the tokens for the large model. Not built: appending further layers until its loss is met.",
        operator="shrink",
        options={"order": "stack"},
        depths=parts("2 1"),
        layers=18,
    ),
    Preset(
        "szp",
        "arXiv 2411.07340, shrink, zero-pad, perturb",
        published="0.4 W padded with zeros, plus a whole initialisation, on matrices.",
        ours=f"Gains are padded and not shrunk; noise of our initialisation, not muP's; {_BASE}.",
        unknown="What becomes of the optimizer: here it is new.",
        operator="zero",
        options={"fill": "zeros", "norm": "none", "old_weight_scale": 0.4, "noise": 1.0},
        widths=parts("1/2 1"),
        shares=(0.2, 0.8),
    ),
    Preset(
        "sparkling",
        "arXiv 2602.02472, SPARKLING",
        published="Twice the model's width and its MLPs', heads as they are, after half of the tokens; moments of old "
        "slices stay, copies start without, and the rate rises anew for the copies alone within the running schedule.",
        ours="Scaled copies, which keep the function and the size of activations; from its mixture of experts to any "
        "model.",
        unknown="The scale of copies and the re-warm: here 40 steps from 0 to the running rate.",
        optimizer_state="keep_old",
        widths=parts("1/2 1"),
        still=(*STILL, Kind.HEADS),
        rates="continue",
        rewarm_steps=40,
        rewarm="new",
    ),
    Preset(
        "mup_upscaling",
        "arXiv 2602.10545, muP upscaling",
        published="Every coordinate twice in place, readers by halves, Adam's moments by the dual map with the step "
        "kept; rates, decay and eps by muP's; whole initial values of a smaller size on top of matrices.",
        ours=f"The size of what is added, a tenth of muP's initial values, where the paper searches it; {_BASE}.",
        options={"select": "repeat", "noise": 0.1, "old_weight_scale": 1.0},
        optimizer_state="map",
        widths=parts("1/2 1"),
        shares=(0.2, 0.8),
        based=True,
        example=_with_base(ModelConfig(24, embed=12, heads=6, kv_heads=6, head_dim=2, mlp=18, vocab=11)),
    ),
    Preset(
        "untied_grow",
        f"{_LOOPS}, Untied-Grow",
        published=f"Two cores, C1 C2, become C1 C2 C1 C2 {_IN_PLACE}; a linear decay over all of the run.",
        ours="After 75 % of the tokens, the middle of its 60 to 77.",
        optimizer_state="keep_old",
        shares=(0.75, 0.25),
        rates="continue",
        schedule=_linear(1.0),
        rewarm_steps=40,
        before=before_growth,
        example=_looped(cores=4, injection=1.0),
    ),
    Preset(
        "loop_grow",
        f"{_LOOPS}, Loop-Grow",
        published="A core that was run twice is run four times; weights and moments stay; else as untied_grow.",
        ours="After 85 % of the tokens, of its 75 to 88. 6 N D counts stored parameters, so passes are free in it.",
        optimizer_state="keep_old",
        shares=(0.85, 0.15),
        rates="continue",
        schedule=_linear(1.0),
        rewarm_steps=40,
        before=before_growth,
        example=_looped(passes=4, injection=1.0),
    ),
    Preset(
        "deep_vanilla_grow",
        f"{_LOOPS}, Deep Vanilla Grow",
        published="As untied_grow, without a boundary, after half of the tokens.",
        unknown="The order of layers and the recipe: here they are untied_grow's and Deep Vanilla's.",
        optimizer_state="keep_old",
        rates="continue",
        schedule=_linear(0.8),
        rewarm_steps=40,
        before=before_growth,
        example=_looped(cores=4),
    ),
    Preset(
        "spdf",
        "arXiv 2303.10464 (UAI 2023), SPDF",
        published="Three quarters, or half, of the matrices of blocks are zero under a static random mask in "
        "pre-training, and free for fine-tuning.",
        ours="Four fifths of the tokens under the mask, as many weights kept in every row; the rest on the same text, "
        "with a new optimizer.",
        rates="constant",
        shares=(0.8, 0.2),
        sparsities=(0.75, 0.0),
    ),
    Preset(
        "tokenformer",
        "arXiv 2410.23168 (ICLR 2025), TokenFormer as in the paper",
        published="Slots with zero keys and fresh values, where the target's scales are the old roots of the numbers "
        "of slots, as growlm grow has them; a cosine of its own, 120 thousand steps after 600.",
        ours="That slots double.",
        operator="zero",
        shares=(600, 120),
        before=half_the_slots,
        example=half_the_slots(_TOKENFORMER).grown(qkv_slots=12, out_slots=12, mlp_slots=24),
    ),
    Preset(
        "tokenformer_published",
        "arXiv 2410.23168 (ICLR 2025), TokenFormer as in its code",
        published="Keys and values of new slots are fresh, and scales the roots of the new numbers of slots, where the "
        "target leaves them out. The function changes.",
        ours="That slots double.",
        operator="random",
        shares=(600, 120),
        before=half_the_slots,
        example=_TOKENFORMER,
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ROWS}
