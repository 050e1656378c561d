"""Published systems as rows of a table: an operator with its options, what becomes of the optimizer, and the shapes.

A preset is a named choice of an operator and its options, not a code path.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax

from growlm.errors import InputError, must_be, unknown
from growlm.growth.claims import claim
from growlm.growth.depth import PARTIAL, partial_order
from growlm.growth.operators import OPERATORS, SHRINKS, current_options, plan_growth
from growlm.models import DecoderConfig, Kind, LoopedConfig, MixtralConfig, ModelConfig, TokenformerConfig
from growlm.models.looped import before_growth
from growlm.models.tokenformer import half_the_slots

Sizes = Callable[[int], tuple[float, ...]]


def _parts(text: str) -> Sizes:
    """Sizes as parts of a target's: "1/4 1" is a quarter of it, then the whole."""
    return lambda size: tuple(float(size * Fraction(part)) for part in text.split())


_WHOLE = _parts("1")


@dataclasses.dataclass(frozen=True)
class StageShape:
    """One stage of a published schedule: its model, and the `StageConfig` settings by which it trains."""

    model: DecoderConfig
    frozen_layers: int = 0
    submodel_layers: int = 0


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published system.

    Attributes:
      name: its name here.
      paper: where it was published, and its name there.
      exact: what is reproduced exactly, and what is not.
      operator, options: the growth, as for `growlm.grow`.
      optimizer_state: as for `grow_state`.
      train: what trains after growth, "all" or the "new" slices.
      depths, widths: from a target's size to the sizes of all stages; the last one is the target's. They are from an
        experiment of the paper where known; otherwise a doubling.
      experts, chosen: the same for the number of experts of a mixture, and of those of a token, at most all.
      frozen_below: stages that add layers on top freeze the layers below them.
      submodels: the number of sub-models of which the stage after the first growth samples one for each step; 0: none.
      layers: a target depth that the schedule divides, the published one where known.
      before: from a target to the shape before the growth, where sizes alone do not say it.
      example: a target of the system's own architecture, where that is not Llama's.
    """

    name: str
    paper: str
    exact: str
    operator: str = "direct"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer_state: str = "reset"
    train: str = "all"
    depths: Sizes = _WHOLE
    widths: Sizes = _WHOLE
    experts: Sizes = _WHOLE
    chosen: Sizes = _WHOLE
    frozen_below: bool = False
    submodels: int = 0
    layers: int = 24
    before: Callable[[Any], DecoderConfig] | None = None
    example: DecoderConfig | None = None

    def stages(self, target: DecoderConfig) -> tuple[StageShape, ...]:
        """The published schedule, scaled to a target, from the first shape to the target itself.

        All widths scale by one factor, numbers of heads too; heads keep their size. Raises InputError where a size
        is not an integer.
        """
        if self.before is not None:
            return tuple(map(StageShape, (self.before(target), target)))
        depth = target.architecture.stack.field
        routed = target.architecture.of_kind(Kind.EXPERTS)
        number = max(
            len(self.depths(getattr(target, depth))),
            len(self.widths(target.size(target.architecture.stream))),
            *(len(self.experts(target.size(axis))) for axis in routed),
        )
        depths = self._sizes(target, depth, self.depths, number)
        widths = {name: self._sizes(target, name, self.widths, number) for name in _scaled(target)}
        for axis in routed:
            experts, chosen = (
                self._sizes(target, field, rule, number)
                for field, rule in ((axis.field, self.experts), (axis.chosen, self.chosen))
            )
            widths |= {axis.field: experts, axis.chosen: [min(pair) for pair in zip(experts, chosen, strict=True)]}
        models = [
            dataclasses.replace(target, **{depth: layers}, **{name: sizes[stage] for name, sizes in widths.items()})
            for stage, layers in enumerate(depths)
        ]
        frozen = [0, *(a if self.frozen_below and b > a else 0 for a, b in itertools.pairwise(depths))]
        blocks = [self._block(depths) if self.submodels and stage == 1 else 0 for stage in range(number)]
        return tuple(map(StageShape, models, frozen, blocks))

    def _block(self, depths: list[int]) -> int:
        """The number of layers by which sub-models differ."""
        if depths[1] % self.submodels:
            raise must_be("model.layers", f"a multiple of {self.submodels} for preset {self.name!r}", depths[1])
        return depths[1] // self.submodels

    def _sizes(self, target: DecoderConfig, name: str, rule: Sizes, number: int) -> list[int]:
        size = getattr(target, name)
        sizes = [*rule(size), *[size] * number][:number]
        if any(part != int(part) for part in sizes):
            shown = ", ".join(f"{part:g}" for part in sizes)
            raise InputError(f"model.{name} must be an integer in every stage of preset {self.name!r}, got {shown}")
        return [int(part) for part in sizes]


def _scaled(config: DecoderConfig) -> tuple[str, ...]:
    """The sizes that a schedule in width scales: those of a layer, without the number of experts and heads' sizes."""
    still = {axis.field for axis in config.architecture.of_kind(Kind.EXPERTS, Kind.HEAD)}
    return tuple(field for field in config.architecture.widths if field not in still)


# The mask schedule of the G_stack authors' MSG code: 5000 steps of 1024 x 2048 tokens.
_MASK_TOKENS = 5000 * 1024 * 2048

_SIXTHS = _parts("1/6 2/6 3/6 4/6 5/6 1")
_FPI = {"order": "stack_top", "select": "random", "norm": "none"}
_HYPERCLONING = "arXiv 2409.12903, HyperCloning"

_LOOPS = "arXiv 2609.19107"
_IN_PLACE = (
    "between prelude and coda; what is carried keeps its moments, copies start without. Not built: the re-warm of 40 "
    "steps inside the running schedule."
)


def _looped(**cores: Any) -> LoopedConfig:
    """Two layers of prelude and of coda, and cores of two."""
    layers = 4 + 2 * cores.get("cores", 1)
    return LoopedConfig(layers, embed=12, heads=6, head_dim=2, mlp=18, vocab=5, prelude=2, coda=2, **cores)


_TOKENFORMER = TokenformerConfig(
    2, embed=12, heads=6, head_dim=2, qkv_slots=12, out_slots=12, mlp_slots=24, vocab=5, rotary_dim=2
)
# A published system is one row.
_ROWS = (
    Preset(
        "g_stack",
        "arXiv 2405.15319 (NeurIPS 2024), G_stack",
        "Exact: the whole list of layers, g = 4 times, in one growth, with a new optimizer.",
        options={"order": "stack"},
        depths=_parts("1/4 1"),
    ),
    *(
        Preset(
            f"partial_{pattern}",
            "arXiv 2405.15319, partial stacking",
            f"Exact: the layer list. The paper prints connection rate {rate:.1f} %.",
            options={"order": partial_order(pattern)},
            depths=_parts("1/4 1"),
        )
        for pattern, rate in PARTIAL.items()
    ),
    Preset(
        "interpose",
        "arXiv 2510.08008 (ICML 2026), orthogonal growth",
        "Exact: every layer twice in place, a new optimizer. Not built: sparing the first and last layers.",
        options={"order": "interleave"},
        depths=_parts("1/2 1"),
    ),
    Preset(
        "orthogonal_experts",
        "arXiv 2510.08008 (ICML 2026), orthogonal growth in width",
        "Exact: twice the experts and twice the chosen ones, routers copied with noise of 0.01 of their standard "
        "deviation on the copies, a new optimizer. Without the noise the function is kept.",
        options={"router_noise": 0.01},
        experts=_parts("1/2 1"),
        chosen=_parts("1/2 1"),
    ),
    Preset(
        "sparse_upcycling",
        "arXiv 2212.05055 (ICLR 2023), sparse upcycling",
        "Exact: every MLP becomes copies of itself, routers are fresh, all else is copied; normalised weights keep the "
        "function; a new optimizer. Ours: in every layer, and the scale of routers. A mixture of one expert is dense.",
        experts=lambda experts: (1, experts),
    ),
    Preset(
        "drop_upcycling",
        "arXiv 2502.19261 (ICLR 2025), Drop-Upcycling",
        "Exact: half of every expert's units drawn anew, one set for all three matrices, with the mean and standard "
        "deviation of what they replace; a new optimizer. Ours: routers normal, not uniform; the published script "
        "draws a set for each matrix.",
        options={"drop_units": 0.5},
        experts=lambda experts: (1, experts),
    ),
    Preset(
        "expert_upcycling",
        "arXiv 2604.19835, expert upcycling",
        "Exact: twice the experts, routers and moments copied, as many chosen as before. Which experts are copied is "
        "to be given as expert_order, by growth.mixtures.order_by_norm for the paper's greedy choice; without, each "
        "once. Ours: one order for all layers, and noise on copied routers in place of noise on their biases.",
        options={"router_noise": 0.01},
        optimizer_state="map",
        experts=_parts("1/2 1"),
    ),
    Preset(
        "stackbert",
        "ICML 2019 (Gong et al.), progressive stacking",
        "Exact: doublings 3-6-12. Its code can keep the moments with step count 0; here the optimizer is new.",
        options={"order": "stack"},
        depths=_parts("1/4 1/2 1"),
        layers=12,
    ),
    Preset(
        "gradual_stacking",
        "ICML 2023 (Reddi et al.), gradual stacking",
        "Exact: every stage repeats its last b layers. Not checked against the paper: b, here a sixth of the target, "
        "and the optimizer, here a new one.",
        options={"order": "top"},
        depths=_SIXTHS,
    ),
    Preset(
        "mslt",
        "arXiv 2011.13635, MSLT (progressively stacking 2.0)",
        "Exact: copies of the top layers; a stage trains only these and what is above them, the last stage all. The "
        "optimizer is new, for the head too.",
        options={"order": "top"},
        depths=_parts("1/4 1/2 3/4 1 1"),
        frozen_below=True,
        layers=12,
    ),
    Preset(
        "bert2bert_fpi",
        "arXiv 2110.07143 (ACL 2022), bert2BERT FPI",
        "Exact: added coordinates copy random ones, readers divide by the number of copies, norms are copied, depth is "
        "stacked with the remainder from the top. Norms change the function; norm='isometry' keeps it in width.",
        options=_FPI,
        depths=_parts("1/2 1"),
        widths=_parts("2/3 1"),
        layers=12,
    ),
    Preset(
        "bert2bert_aki",
        "arXiv 2110.07143 (ACL 2022), bert2BERT AKI",
        "Exact: FPI, with added matrix columns from the next layer, in the last layer from itself. Of two stages after "
        "growth, one trains the top third of a sampled sub-model (with head and last norm; the embedding with the "
        "first), one all. Ours: thirds, equal probabilities, and that what is not sampled keeps its moments.",
        options=_FPI | {"aki": True},
        depths=_parts("1/2 1 1"),
        widths=_parts("2/3 1"),
        submodels=3,
        layers=12,
    ),
    Preset(
        "ligo",
        "arXiv 2303.00980 (ICLR 2023), LiGO",
        "Exact: the maps and how they are tied. They are trained by the recipe of the G_stack authors (AdamW, 100 "
        "steps), rows that start as the identity too.",
        operator="learn",
        depths=_parts("1/2 1"),
        widths=_parts("2/3 1"),
        layers=12,
    ),
    Preset(
        "msg",
        "arXiv 2305.02869 (ICLR 2024), MSG",
        "Exact: masks from 0 to 1 one after the other, norms over unmasked coordinates, zero moments for new ones, the "
        "step kept. mask_tokens and the single growth (FFN, stream, heads) are the G_stack authors'; MSG searches a "
        "schedule of several, and copies layers.",
        operator="random",
        options={"mask_tokens": _MASK_TOKENS, "in_turn": True, "whole_blocks": True},
        optimizer_state="map",
        depths=_parts("1/2 1"),
        widths=_parts("1/2 1"),
    ),
    Preset(
        "lemon",
        "arXiv 2310.07999 (ICLR 2024), LEMON",
        "Exact: copies with unequal read weights that sum to 1, added layers with zero residual writers. Ours: scaled "
        "copies on the stream instead of means or zeros, and the imbalance of 0.5, which is not published.",
        options={"order": "interleave", "zero_residual": True, "split_imbalance": 0.5},
        depths=_parts("1/2 1"),
        widths=_parts("1/2 1"),
        layers=12,
    ),
    Preset(
        "hypercloning",
        f"{_HYPERCLONING} (symmetric)",
        "Exact for whole factors: W becomes W/k in k x k places. Other factors, which it refuses, grow by scaled "
        "copies; a tied head stays tied, with its factor in the last norm.",
        widths=_parts("1/2 1"),
    ),
    Preset(
        "hypercloning_diagonal",
        f"{_HYPERCLONING} (diagonal)",
        "Exact for whole factors: W becomes W k times on the diagonal; the head, which writes no copies, W/k.",
        options={"block_diagonal": True},
        widths=_parts("1/2 1"),
    ),
    Preset(
        "hypercloning_noisy",
        f"{_HYPERCLONING} (noisy symmetric)",
        "Exact: noise that cancels among copies. Not its size: 0.316 is 10 dB below the target's initial values, where "
        "the paper's is below the weights themselves; for 2 copies 0.71 of it is left.",
        options={"noise": 0.316, "cancel": True},
        widths=_parts("1/2 1"),
    ),
    Preset(
        "staged_training",
        "arXiv 2203.06211 (ICML 2022), staged training",
        "Exact: W twice on the diagonal, moments by the dual map (m/2, v/4), step kept. Moments off the diagonal are "
        "m/2 and v/4 too, which is their gradient; its code has 0. Added layers have zero attn/out and mlp/down, the "
        "paper's zero norm gains; its code makes plain copies (zero_residual=False).",
        options={"order": "interleave", "zero_residual": True, "block_diagonal": True},
        optimizer_state="map",
        depths=_parts("1/2 1"),
        widths=_parts("1/2 1"),
    ),
    Preset(
        "llama_pro",
        "arXiv 2401.02415 (ACL 2024), LLaMA Pro",
        "Exact: after every m-th layer a copy with zero attn/out and mlp/down; only the copies train.",
        operator="zero",
        options={"order": "expand"},
        train="new",
        depths=_parts("4/5 1"),
        layers=40,
    ),
    Preset(
        "solar",
        "arXiv 2312.15166, SOLAR depth up-scaling",
        "Exact: the first 24 and the last 24 of 32 layers; weights only, a new optimizer.",
        options={"order": "overlap"},
        depths=_parts("2/3 1"),
        layers=48,
    ),
    Preset(
        "midas",
        "arXiv 2409.19044 (NeurIPS 2024), MIDAS",
        "Exact: the middle one of n blocks repeated, moments with it. Ours: six equal steps. Not built: budgets that "
        "grow with the stage.",
        options={"order": "middle"},
        optimizer_state="map",
        depths=_SIXTHS,
    ),
    Preset(
        "lidas",
        "arXiv 2512.08819, LIDAS",
        "Exact where L - b is even: the central block repeated, moments with it. Ours: other roundings, six equal "
        "steps.",
        options={"order": "centre"},
        optimizer_state="map",
        depths=_SIXTHS,
    ),
    Preset(
        "zero_layer",
        "arXiv 2511.04981 (ICML 2026), zero-layer expansion",
        "Exact: no layer at first, then all at once, freshly initialised, with zero moments of age 0. Not built: its "
        "muP scaling; when to grow (80 % of the steps, before the decay) is for the schedule.",
        operator="random",
        optimizer_state="map_aged",
        depths=_parts("0 1"),
        layers=60,
    ),
    Preset(
        "one_layer",
        "arXiv 2511.04981 (ICML 2026), one-layer expansion",
        "Exact: one layer at first, then copies of it. They keep its moments, where the paper starts new layers "
        "afresh. Not built: its muP scaling.",
        options={"order": "stack"},
        optimizer_state="map",
        depths=lambda layers: (1, layers),
        layers=60,
    ),
    Preset(
        "inheritune",
        "arXiv 2404.08634, Inheritune",
        "Exact: the first half of the layers, embedding, last norm and head, with a new optimizer. Not built: appending"
        " further layers of the reference until its loss is met.",
        operator="shrink",
        options={"order": "stack"},
        depths=_parts("2 1"),
        layers=18,
    ),
    Preset(
        "szp",
        "arXiv 2411.07340, shrink, zero-pad, perturb",
        "Exact: 0.4 W padded with zeros, plus a whole initialisation, on matrices; gains are padded and not shrunk. "
        "The noise is of our initialisation, not muP's.",
        operator="zero",
        options={"fill": "zeros", "norm": "none", "old_weight_scale": 0.4, "noise": 1.0},
        widths=_parts("1/2 1"),
    ),
    Preset(
        "untied_grow",
        f"{_LOOPS}, Untied-Grow",
        f"Exact: two cores, C1 C2, become C1 C2 C1 C2 {_IN_PLACE}",
        optimizer_state="keep_old",
        before=before_growth,
        example=_looped(cores=4, injection=1.0),
    ),
    Preset(
        "loop_grow",
        f"{_LOOPS}, Loop-Grow",
        "Exact: a core that was run twice is run four times; weights and moments stay. Not built: the re-warm of 40 "
        "steps inside the running schedule.",
        optimizer_state="keep_old",
        before=before_growth,
        example=_looped(passes=4, injection=1.0),
    ),
    Preset(
        "deep_vanilla_grow",
        f"{_LOOPS}, Deep Vanilla Grow",
        f"Exact: as untied_grow, without a boundary, {_IN_PLACE} The order is a guess: no script was published.",
        optimizer_state="keep_old",
        before=before_growth,
        example=_looped(cores=4),
    ),
    Preset(
        "tokenformer",
        "arXiv 2410.23168 (ICLR 2025), TokenFormer as in the paper",
        "Exact: slots with zero keys and fresh values, where the target's scales are the old roots of the numbers of "
        "slots, as growlm grow has them. Ours: that slots double. Its schedule is a cosine of its own.",
        operator="zero",
        before=half_the_slots,
        example=half_the_slots(_TOKENFORMER).grown(qkv_slots=12, out_slots=12, mlp_slots=24),
    ),
    Preset(
        "tokenformer_published",
        "arXiv 2410.23168 (ICLR 2025), TokenFormer as in its code",
        "Exact: keys and values of new slots are fresh, and scales the roots of the new numbers of slots, where the "
        "target leaves them out. The function changes. Ours: that slots double.",
        operator="random",
        before=half_the_slots,
        example=_TOKENFORMER,
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ROWS}


@dataclasses.dataclass(frozen=True)
class Resolved:
    """The growth that a name stands for, with the caller's options."""

    operator: str
    options: dict[str, Any]
    optimizer_state: str
    train: str


def resolve(name: str, options: Mapping[str, Any] | None = None) -> Resolved:
    """The growth that an operator's or preset's name stands for; these options override the preset's.

    Raises InputError for an unknown name, and for an option given by its old and its new name.
    """
    if name in OPERATORS or name in SHRINKS:
        return Resolved(name, current_options(name, options or {}), "reset", "all")
    if name not in PRESETS:
        raise unknown("growth operator or preset", name, [*OPERATORS, *SHRINKS, *PRESETS])
    preset = PRESETS[name]
    options = preset.options | current_options(preset.operator, options or {})
    return Resolved(preset.operator, options, preset.optimizer_state, preset.train)


def keeps_function(preset: Preset, grows: str) -> bool | None:
    """Whether a preset claims to keep the function when only "depth", "width" or "mixture" grows; None where none does.

    Claims are made for every growth of its schedule, on small shapes.
    """
    model = MixtralConfig if grows == "mixture" else ModelConfig
    target = preset.example or model(preset.layers, embed=12, heads=6, kv_heads=6, head_dim=2, mlp=18, vocab=5)
    if grows == "mixture" and not target.architecture.of_kind(Kind.EXPERTS):
        return None
    stages = [stage.model for stage in preset.stages(target)]
    if preset.before is not None:
        wider = any(getattr(stages[0], name) != getattr(target, name) for name in _scaled(target))
        if wider is not (grows == "width"):
            return None
    depth = tuple(axis.field for axis in target.architecture.of_kind(Kind.STACK))
    kept = {"depth": _scaled(target), "width": depth, "mixture": (*_scaled(target), *depth)}[grows]
    still = {name: getattr(target, name) for name in kept}
    pairs = [tuple(dataclasses.replace(model, **still) for model in pair) for pair in itertools.pairwise(stages)]
    key = jax.random.key(0)
    claims = [
        claim(plan_growth(preset.operator, source, grown, key, **preset.options), source, grown)[0]
        for source, grown in pairs
        if source != grown
    ]
    return all(claims) if claims else None
