"""Published systems as rows of a table: an operator with its options, what becomes of the optimizer, and the shapes.

A preset is a named point in the space of `OPERATORS` and their options, not a code path. `resolve` gives the operator
and the options of a name, `Preset.stages` the shapes through which the system grows, `table` the whole table as text.
"""

import dataclasses
import itertools
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from growlm.errors import InputError, unknown
from growlm.growth.claims import claim
from growlm.growth.depth import PARTIAL, partial_order
from growlm.growth.operators import OPERATORS, plan_growth
from growlm.models import DecoderConfig, Kind, ModelConfig

Sizes = Callable[[int], tuple[float, ...]]


def _constant(size: int) -> tuple[float, ...]:
    return (size,)


def _halves(size: int) -> tuple[float, ...]:
    return (size / 2, size)


def _quarter(size: int) -> tuple[float, ...]:
    return (size / 4, size)


def _two_thirds(size: int) -> tuple[float, ...]:
    return (size * 2 / 3, size)


def _sixths(size: int) -> tuple[float, ...]:
    return tuple(size * part / 6 for part in range(1, 7))


@dataclasses.dataclass(frozen=True)
class StageShape:
    """One stage of a published schedule: the model, and the settings of that name of a stage that trains it."""

    model: DecoderConfig
    frozen_layers: int = 0
    submodel_layers: int = 0


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published system.

    Attributes:
      name: what it is called here.
      paper: where it was published, and its name there.
      operator, options: the growth, as `growlm.grow` takes them.
      exact: one sentence on what is reproduced exactly and what is not.
      optimizer_state: "reset", "map" or "map_aged", as `grow_state` takes it.
      train: what trains after growth, "all" or the "new" slices.
      depths, widths: from a target's size to the sizes of all stages, the last being the target's. They are those of
        one experiment of the paper as far as known; where `exact` says nothing of them, a doubling is ours.
      frozen_below: a stage that adds layers on top trains no layer below them.
      submodels: of how many sub-models the first stage after the first growth trains one at each step; 0: none.
      layers: a target depth that the schedule divides, the published one where it is known.
    """

    name: str
    paper: str
    operator: str
    options: dict[str, Any]
    exact: str
    optimizer_state: str = "reset"
    train: str = "all"
    depths: Sizes = _constant
    widths: Sizes = _constant
    frozen_below: bool = False
    submodels: int = 0
    layers: int = 24

    def stages(self, target: DecoderConfig) -> tuple[StageShape, ...]:
        """The published schedule for a target, from the first shape to the target itself.

        All widths scale alike, numbers of heads too; what is fixed keeps its size. Raises InputError where a size is no
        whole number.
        """
        depth = target.architecture.stack.field
        number = max(
            len(self.depths(getattr(target, depth))), len(self.widths(target.size(target.architecture.stream)))
        )
        depths = self._sizes(target, depth, self.depths, number)
        widths = {name: self._sizes(target, name, self.widths, number) for name in _scaled(target)}
        models = [
            dataclasses.replace(target, **{depth: layers}, **{name: sizes[stage] for name, sizes in widths.items()})
            for stage, layers in enumerate(depths)
        ]
        frozen = [0, *(a if self.frozen_below and b > a else 0 for a, b in itertools.pairwise(depths))]
        blocks = [self._block(depths) if self.submodels and stage == 1 else 0 for stage in range(number)]
        return tuple(map(StageShape, models, frozen, blocks))

    def _block(self, depths: list[int]) -> int:
        """How many layers every sub-model has more than the one before."""
        if depths[1] % self.submodels:
            raise InputError(
                f"preset {self.name!r} cuts model.layers in {self.submodels}: allowed are multiples, not {depths[1]}"
            )
        return depths[1] // self.submodels

    def _sizes(self, target: DecoderConfig, name: str, rule: Sizes, number: int) -> list[int]:
        size = getattr(target, name)
        sizes = [*rule(size), *[size] * number][:number]
        if any(part != int(part) for part in sizes):
            shown = ", ".join(f"{part:g}" for part in sizes)
            raise InputError(f"preset {self.name!r} grows model.{name} by {shown}: allowed are whole numbers")
        return [int(part) for part in sizes]


def _scaled(config: DecoderConfig) -> tuple[str, ...]:
    """The sizes that a schedule in width scales: all of one layer but the number of experts."""
    experts = {axis.field for axis in config.architecture.of_kind(Kind.EXPERTS)}
    return tuple(field for field in config.architecture.widths if field not in experts)


# The ramp of the G_stack authors' MSG code: 5000 steps of 1024 x 2048 tokens.
_RAMP_TOKENS = 5000 * 1024 * 2048

_FPI = {"order": "stack_top", "select": "random", "norm": "none"}
_HYPERCLONING = "arXiv 2409.12903, HyperCloning"

# Adding a system is one row.
_ROWS = (
    Preset(
        "g_stack",
        "arXiv 2405.15319 (NeurIPS 2024), G_stack",
        "direct",
        {"order": "stack"},
        "Exact: the whole list of layers, g = 4 times, one hop, a new optimizer.",
        depths=_quarter,
    ),
    *(
        Preset(
            f"partial_{pattern}",
            "arXiv 2405.15319, partial stacking",
            "direct",
            {"order": partial_order(pattern)},
            f"Exact: the layer list. The paper prints connection rate {rate:.1f} %.",
            depths=_quarter,
        )
        for pattern, rate in PARTIAL.items()
    ),
    Preset(
        "interpose",
        "arXiv 2510.08008 (ICML 2026), orthogonal growth",
        "direct",
        {"order": "interleave"},
        "Exact: every layer twice in place, a new optimizer. Not built: growth of experts, and sparing the first and "
        "last layers.",
        depths=_halves,
    ),
    Preset(
        "stackbert",
        "ICML 2019 (Gong et al.), progressive stacking",
        "direct",
        {"order": "stack"},
        "Exact: doublings 3-6-12. Its code can keep the moments and sets their count to 0; here they start afresh.",
        depths=lambda n: (n / 4, n / 2, n),
        layers=12,
    ),
    Preset(
        "gradual_stacking",
        "ICML 2023 (Reddi et al.), gradual stacking",
        "direct",
        {"order": "top"},
        "Exact: every stage repeats its last b layers. b, a sixth of the target here, and what becomes of the "
        "optimizer, a new one here, are not checked against the paper.",
        depths=_sixths,
    ),
    Preset(
        "mslt",
        "arXiv 2011.13635, MSLT (progressively stacking 2.0)",
        "direct",
        {"order": "top"},
        "Exact: copies of the top layers, of which alone, with what is above them, a stage trains; a last stage trains "
        "all. The optimizer starts afresh as a whole, also for the head.",
        depths=lambda n: (n / 4, n / 2, n * 3 / 4, n, n),
        frozen_below=True,
        layers=12,
    ),
    Preset(
        "bert2bert_fpi",
        "arXiv 2110.07143 (ACL 2022), bert2BERT FPI",
        "direct",
        _FPI,
        "Exact: added coordinates copy random ones, readers divide by the number of copies, norms are copied, depth is "
        "stacked with the rest from the top. So a norm notices; norm='isometry' keeps the function in width.",
        depths=_halves,
        widths=_two_thirds,
        layers=12,
    ),
    Preset(
        "bert2bert_aki",
        "arXiv 2110.07143 (ACL 2022), bert2BERT AKI",
        "direct",
        _FPI | {"next_layer": True},
        "Exact: as FPI, and what width adds to a matrix comes from the next layer, in the last layer from itself. "
        "Two stages train after growth: one trains the top third of a sampled sub-model (with head and last norm; "
        "embedding under the first), one all. Thirds, one probability for all, and what is not sampled keeping its "
        "moments are ours.",
        depths=lambda n: (n / 2, n, n),
        widths=_two_thirds,
        submodels=3,
        layers=12,
    ),
    Preset(
        "ligo",
        "arXiv 2303.00980 (ICLR 2023), LiGO",
        "learn",
        {},
        "Exact: the maps and how they are tied. How they are trained is the recipe of the G_stack authors (AdamW, 100 "
        "steps), and the rows that begin as the identity train too.",
        depths=_halves,
        widths=_two_thirds,
        layers=12,
    ),
    Preset(
        "msg",
        "arXiv 2305.02869 (ICLR 2024), MSG",
        "random",
        {"ramp_tokens": _RAMP_TOKENS, "in_turn": True, "whole_blocks": True},
        "Exact: masks from 0 to 1 one after the other, norms over what is unmasked, zero moments for what is new, the "
        "step kept. ramp_tokens and one hop (FFN, stream, heads) are the G_stack authors'; MSG searches a schedule "
        "of several, and copies layers.",
        optimizer_state="map",
        depths=_halves,
        widths=_halves,
    ),
    Preset(
        "lemon",
        "arXiv 2310.07999 (ICLR 2024), LEMON",
        "direct",
        {"order": "interleave", "silent": True, "uneven": 0.5},
        "Exact: copies read in unequal parts that add up to 1, added layers with zero residual writers. The stream "
        "grows by scaled copies, not by means or zeros; how unequal is not published, 0.5 is ours, one for all layers.",
        depths=_halves,
        widths=_halves,
        layers=12,
    ),
    Preset(
        "hypercloning",
        f"{_HYPERCLONING} (symmetric)",
        "direct",
        {},
        "Exact for whole factors: W becomes W/k in k x k places. Other factors, which it refuses, grow by scaled "
        "copies; a tied head stays tied, its factor being in the last norm.",
        widths=_halves,
    ),
    Preset(
        "hypercloning_diagonal",
        f"{_HYPERCLONING} (diagonal)",
        "direct",
        {"diagonal": True},
        "Exact for whole factors: W becomes W k times on the diagonal; the head, which writes no copies, W/k.",
        widths=_halves,
    ),
    Preset(
        "hypercloning_noisy",
        f"{_HYPERCLONING} (noisy symmetric)",
        "direct",
        {"noise": 0.316, "cancel": True},
        "Exact: noise that cancels among copies. Its size is not: 0.316 is 10 dB against the initial values of the "
        "target, where the paper's is against the weights themselves; for 2 copies 0.71 of it is left.",
        widths=_halves,
    ),
    Preset(
        "staged_training",
        "arXiv 2203.06211 (ICML 2022), staged training",
        "direct",
        {"order": "interleave", "silent": True, "diagonal": True},
        "Exact: W twice on the diagonal, moments by the dual map (m/2, v/4), step kept. Moments off the diagonal are "
        "m/2 and v/4 too, which is their gradient; its code has 0. Added layers are silent by attn/out and mlp/down, "
        "the paper's by their norms' gains; its code makes plain copies (silent=False).",
        optimizer_state="map",
        depths=_halves,
        widths=_halves,
    ),
    Preset(
        "llama_pro",
        "arXiv 2401.02415 (ACL 2024), LLaMA Pro",
        "zero",
        {"order": "expand"},
        "Exact: after every m-th layer a copy with zero attn/out and mlp/down; only the copies train.",
        train="new",
        depths=lambda n: (n * 4 / 5, n),
        layers=40,
    ),
    Preset(
        "solar",
        "arXiv 2312.15166, SOLAR depth up-scaling",
        "direct",
        {"order": "overlap"},
        "Exact: the first 24 and the last 24 of 32 layers; weights only, a new optimizer.",
        depths=_two_thirds,
        layers=48,
    ),
    Preset(
        "midas",
        "arXiv 2409.19044 (NeurIPS 2024), MIDAS",
        "direct",
        {"order": "middle"},
        "Exact: the middle one of n blocks once more, moments with it. Not built: budgets that grow with the stage; "
        "six equal steps are ours.",
        optimizer_state="map",
        depths=_sixths,
    ),
    Preset(
        "lidas",
        "arXiv 2512.08819, LIDAS",
        "direct",
        {"order": "centre"},
        "Exact where L - b is even: the central block once more, moments with it; else our rounding. Six equal steps "
        "are ours.",
        optimizer_state="map",
        depths=_sixths,
    ),
    Preset(
        "zero_layer",
        "arXiv 2511.04981 (ICML 2026), zero-layer expansion",
        "random",
        {},
        "Exact: no layer at first, then all at once, of initial values, without moments and of age 0. Its muP scaling "
        "is not built; when to grow (80 % of the steps, before the decay) is for the schedule.",
        optimizer_state="map_aged",
        depths=lambda n: (0, n),
        layers=60,
    ),
    Preset(
        "one_layer",
        "arXiv 2511.04981 (ICML 2026), one-layer expansion",
        "direct",
        {"order": "stack"},
        "Exact: one layer at first, then copies of it. They keep its moments, where the paper starts new layers "
        "afresh; its muP scaling is not built.",
        optimizer_state="map",
        depths=lambda n: (1, n),
        layers=60,
    ),
    Preset(
        "szp",
        "arXiv 2411.07340, shrink, zero-pad, perturb",
        "zero",
        {"fill": "zeros", "norm": "none", "keep": 0.4, "noise": 1.0},
        "Exact: 0.4 W padded with zeros, plus a whole initialisation, on matrices; gains are padded and not shrunk. "
        "The noise is of our initialisation, not muP's.",
        widths=_halves,
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ROWS}


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What a name stands for, with the caller's options in it."""

    operator: str
    options: dict[str, Any]
    optimizer_state: str
    train: str


def resolve(name: str, options: Mapping[str, Any] | None = None) -> Resolved:
    """The growth that a name of an operator or of a preset stands for; options given here override the preset's.

    Raises InputError: a name that is neither.
    """
    options = dict(options or {})
    if name in OPERATORS:
        return Resolved(name, options, "reset", "all")
    if name not in PRESETS:
        raise unknown("growth operator or preset", name, [*OPERATORS, *PRESETS])
    preset = PRESETS[name]
    return Resolved(preset.operator, preset.options | options, preset.optimizer_state, preset.train)


def keeps_function(preset: Preset, grows: str) -> bool | None:
    """Whether a preset keeps the function in "depth" or in "width", by its claim on small shapes; None: it never grows.

    Every step of its schedule is tried with the other direction held still.
    """
    target = ModelConfig(preset.layers, embed=12, heads=6, kv_heads=6, head_dim=2, mlp=18, vocab=5)
    stages = [stage.model for stage in preset.stages(target)]
    depth = tuple(axis.field for axis in target.architecture.of_kind(Kind.STACK))
    still = {name: getattr(target, name) for name in (_scaled(target) if grows == "depth" else depth)}
    pairs = [tuple(dataclasses.replace(model, **still) for model in pair) for pair in itertools.pairwise(stages)]
    key = jax.random.key(0)
    claims = [
        claim(plan_growth(preset.operator, source, grown, key, **preset.options), source, grown)[0]
        for source, grown in pairs
        if source != grown
    ]
    return all(claims) if claims else None


# Heading and width of every column of the table.
_COLUMNS = {"preset": 23, "paper": 24, "growth": 30, "stages": 11, "depth": 5, "width": 5, "what is exact": 43}


def table() -> str:
    """All presets, for people: what each is, whether it keeps the function in depth and in width, what is exact."""
    head = dict(zip(_COLUMNS, _COLUMNS, strict=True))
    rule = {name: "-" * width for name, width in _COLUMNS.items()}
    note = (
        "depth, width: does the grown model compute the source's function (by its maps; masks at 0)? -: no such growth"
    )
    lines = itertools.chain.from_iterable(_lines(row.values()) for row in (head, rule, *map(_row, _ROWS)))
    return "\n".join([*lines, "", note])


def _row(preset: Preset) -> dict[str, str]:
    options = " ".join(f"{name}={_shown(value)}" for name, value in preset.options.items())
    more = [f"optimizer {preset.optimizer_state}"] * (preset.optimizer_state != "reset")
    more += [f"trains {preset.train}"] * (preset.train != "all")
    depths = [f"{size:g}" for size in preset.depths(preset.layers)]
    answers = {True: "yes", False: "no", None: "-"}
    return {
        "preset": preset.name,
        "paper": preset.paper,
        "growth": "; ".join([f"{preset.operator} {options}".strip(), *more]),
        "stages": "-".join(depths),
        "depth": answers[keeps_function(preset, "depth")],
        "width": answers[keeps_function(preset, "width")],
        "what is exact": preset.exact,
    }


def _shown(value: Any) -> str:
    return "[...]" if isinstance(value, list) else f"{value:.4g}" if isinstance(value, float) else f"{value}"


def _lines(cells: Iterable[str]) -> list[str]:
    """One row of the table, every cell wrapped to its column."""
    wrapped = [textwrap.wrap(cell, width) for cell, width in zip(cells, _COLUMNS.values(), strict=True)]
    return [
        "  ".join(part.ljust(width) for part, width in zip(parts, _COLUMNS.values(), strict=True)).rstrip()
        for parts in itertools.zip_longest(*wrapped, fillvalue="")
    ]
