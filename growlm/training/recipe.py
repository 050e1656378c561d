"""Experiments on growth at equal cost: a scale, stages of it, and the sweep around them.

An experiment is a file that picks a scale and says which runs it has. Every run of a sweep made here costs as much as
its baseline, the large model on `tokens` tokens: 6 x parameters x tokens over all stages. Only the short control costs
less.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ml_collections import ConfigDict

from growlm.errors import InputError, check_name, check_range
from growlm.laws.published import average_params
from growlm.models import ARCHITECTURES, parameter_count
from growlm.training.config import build_model
from growlm.training.objectives import PARENT
from growlm.training.schedules import WITH_HORIZON
from growlm.training.settings import SweepConfig
from growlm.training.sparsity import density

Stage = dict[str, Any]
Run = dict[str, Any]
Control = tuple[Run, str]

LINES = 200  # of metrics.jsonl, about, from a run of more than ten times as many steps

# The growth of a stage that goes on with the model and the optimizer of the one before.
SAME_MODEL = {"operator": "direct", "optimizer_state": "map"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large an experiment is.

    Attributes:
      layers, widths: the large model's; widths by the fields of its config, with the name of its architecture if that
        is not Llama. Layers are what it stacks: periods of a Samba.
      tokens: of training it from scratch, the budget of every run.
      batch, length: examples of an update, tokens of an example.
      base_lr: peak learning rate of a small model.
      peak_lr: of a grown model, and of the same recipe from scratch.
      tuned_lr: of training from scratch, searched for it; None: there is no such run.
      dtype, remat, microbatches: as in the settings of a run and its stages.
      warmup_tokens: of every stage; None: 2 % of the budget.
      end_lr_ratio: what the schedules that decay end at, as a share of their peak; None: as a schedule has it, a tenth.
      optimizer: settings of the optimizer of every stage that differ from its defaults, which are the paper's.
      validation_batches: of the text that losses are measured on, 25 times a run.
    """

    layers: int
    widths: Mapping[str, Any]
    tokens: int
    batch: int
    length: int
    base_lr: float
    peak_lr: float
    tuned_lr: float | None = None
    dtype: str = "float32"
    remat: str = "dots_and_attention"
    microbatches: int = 1
    warmup_tokens: int | None = None
    end_lr_ratio: float | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    validation_batches: int = 16

    def model(self, layers: int | None = None, **widths: int) -> dict[str, Any]:
        """The large model, or one of other sizes."""
        stack = ARCHITECTURES[self.widths.get("architecture", "llama")].stack
        return {stack.field: self.layers if layers is None else layers, **self.widths, **widths}

    def half_widths(self) -> dict[str, int]:
        """Half of every width, a quarter of the parameters in blocks; heads keep their size."""
        return {name: self.widths[name] // 2 for name in ("embed", "heads", "kv_heads", "mlp")}

    def resized(self, widths: Mapping[str, int], tokens: float) -> "Scale":
        """This scale with some other widths, and `tokens` times its tokens."""
        return replace(self, widths={**self.widths, **widths}, tokens=int(tokens * self.tokens))

    def part(self, share: float) -> int:
        """A share of the budget, in tokens."""
        return int(share * self.tokens)

    def stage(self, model: dict[str, Any], tokens: int, peak_lr: float, kind: str = "cosine", **rest: Any) -> Stage:
        """A stage of any cost. `schedule` in `rest` sets keys of the schedule, all else keys of the stage."""
        warmup = self.part(0.02) if self.warmup_tokens is None else self.warmup_tokens
        schedule = {"kind": kind, "peak_lr": peak_lr, "warmup_tokens": warmup} | rest.pop("schedule", {})
        if self.end_lr_ratio is not None and schedule["kind"] in WITH_HORIZON:
            schedule = {"end_lr_ratio": self.end_lr_ratio} | schedule
        batches = {"batch": self.batch, "length": self.length, "microbatches": self.microbatches}
        optimizer = {"optimizer": dict(self.optimizer)} if self.optimizer else {}
        return {"model": model, "tokens": tokens, **batches, "schedule": schedule, **optimizer, **rest}

    def base(self, share: float, model: dict[str, Any] | None = None, peak_lr: float | None = None) -> Stage:
        """A small model, a quarter of the layers by default, on a share of the budget's tokens, at a constant rate."""
        model = model or self.model(self.layers // 4)
        return self.stage(model, self.part(share), peak_lr or self.base_lr, kind="constant")

    def grown(
        self, before: Sequence[Stage], operator: str, peak_lr: float | None = None, spent: int = 0, **rest: Any
    ) -> Run:
        """The stages before and the large model, grown by an operator or preset, on what they leave of the budget.

        Args:
          before: the first stages.
          operator: of the last growth; its `options`, and its `optimizer_state` if that is not reset, stand in `rest`.
          peak_lr: of the large model; by default the scale's.
          spent: tokens of the large model that the growth itself takes.
          rest: as in `stage`. The forward passes of the stage before are of the budget, where it is the teacher or
            chooses the windows, whose tokens `choice` then says.
        """
        growth = {"operator": operator, "options": {}, "optimizer_state": "reset"}
        growth |= {name: rest.pop(name) for name in growth if name in rest}
        left = self.tokens - spent - sum(map(self._cost, before)) - self._scored(before[-1], rest.get("choice"))
        tokens = left - self._taught(before[-1], left, rest.get("objective", {}))
        return {"stages": (*before, self.stage(self.model(), tokens, peak_lr or self.peak_lr, growth=growth, **rest))}

    def system(
        self, name: str, peak_lr: float | None = None, options: Mapping[str, Any] | None = None, **rest: Any
    ) -> Run:
        """A published system that ends with the large model, at the cost of training that from scratch.

        Args:
          name: in growlm.growth's `PRESETS`.
          peak_lr: of all stages; by default the scale's.
          options: of its growths, over its own.
          rest: as in `stage`.
        """
        target = self.stage(self.model(), self.tokens, peak_lr or self.peak_lr, **rest)
        return {"system": name, "system_options": dict(options or {}), "stages": (target,)}

    def scratch(
        self, peak_lr: float | None = None, model: dict[str, Any] | None = None, share: float = 1.0, **rest: Any
    ) -> Run:
        """A model, by default the large one, from scratch on as many tokens as a share of the budget pays for."""
        model = model or self.model()
        tokens = int(share * self.tokens * _parameters(self.model()) / _parameters(model))
        return {"stages": (self.stage(model, tokens, peak_lr or self.peak_lr, **rest),)}

    def ending(self, run: Run, share: float, **rest: Any) -> Run:
        """The run whose last tokens, a share of the budget, are a stage of their own with other settings, as a corpus.

        All else goes on: the model, which a growth to its own shape keeps, the optimizer's state and the schedule.
        """
        *before, last = run["stages"]
        batch, schedule = last["batch"] * last["length"], dict(last["schedule"])
        whole, tokens = (given // batch * batch for given in (last["tokens"], self.part(share)))
        if schedule["kind"] in WITH_HORIZON:
            schedule["horizon_tokens"] = whole
        end = {"tokens": tokens, "schedule": schedule | {"at_growth": "continue"}, "growth": dict(SAME_MODEL)}
        return {"stages": (*before, last | {"tokens": whole - tokens, "schedule": schedule}, last | end | rest)}

    def controls(self, grown: Run, claim: float = 0.5) -> dict[str, Control]:
        """The controls that any grown run can have, by name: each a run and its purpose.

        - untrained: the growth of a base that was not trained, and all of the budget on the large model. The paper's
          own (arXiv 2405.15319, figure 8 at d = 0): what it reaches is not due to training small first.
        - average_size: a model of the size that the grown run has in the mean of its tokens, the null of 'The Journey
          Matters' (arXiv 2501.12486), by which growing is worth no more than that. Of the models on the line from the
          first to the last it is the one whose tokens, at equal FLOPs, come nearest to the grown run's.
        - short: from scratch on what the grown run would need if the claim held, its schedule run to the end. Where it
          reaches as low a loss, the speed-up is the schedule's.

        The last two have the rate that was searched for training from scratch, where there is one.

        Args:
          grown: the stages of the grown run.
          claim: the speed-up that is claimed; the paper's is about 0.5.
        """
        check_range("claim", claim, low=0, low_allowed=False)
        *before, last = grown["stages"]
        whole = last | {"tokens": last["tokens"] + sum(map(self._cost, before))}
        untrained = {"stages": (*(stage | {"tokens": 0} for stage in before), whole)}
        average, rate = self._average(grown["stages"]), self.tuned_lr or self.peak_lr
        changed = [f"{name} {value}" for name, value in average.items() if value != last["model"][name]]
        return {
            "untrained": (untrained, "the base is grown without having been trained: it should do as scratch does"),
            "average_size": (
                self.scratch(rate, average),
                f"{', '.join(changed)}: the average size of the grown run, at equal FLOPs",
            ),
            "short": (
                self.scratch(rate, share=1 / (1 + claim)),
                f"scratch at the FLOPs that suffice if the speed-up is {claim:.0%}, its schedule run to the end",
            ),
        }

    def sweep(
        self,
        title: str,
        grown: Mapping[str, Run],
        controls: Mapping[str, Control] | None = None,
        *,
        corpus: str | Mapping[str, Any] = "stdlib",
        search: Mapping[str, Sequence[Any]] | None = None,
        seeds: Sequence[int] = (),
    ) -> ConfigDict:
        """The sweep of the grown runs, of `controls` by name, each a run and its purpose, and of those from scratch.

        Args:
          title: of the report.
          grown, controls: runs by name.
          corpus: of the stages that name none, and what all are validated on.
          search: the values to be tried for every run, `{"peak_lr": (...)}`; then there is no run with the scale's
            `tuned_lr`.
          seeds: a folder for each; by default one sweep, at `--config.seed`.
        """
        controls = dict(controls or {})
        if self.tuned_lr is not None and not search:
            controls["scratch_tuned"] = (self.scratch(self.tuned_lr), "equal FLOPs and a learning rate of its own")
        config = ConfigDict()
        config.title = title
        config.corpus = corpus
        config.dtype, config.remat = self.dtype, self.remat
        config.evaluation = {"every_tokens": self.part(0.04), "batches": self.validation_batches}
        config.checkpoint = {"every_tokens": self.part(0.2), "max_to_keep": 1}
        config.log_every_steps = max(10, round(self.tokens / (self.batch * self.length) / LINES))
        config.runs = {**grown, "scratch": self.scratch(), **{name: run for name, (run, _) in controls.items()}}
        config.baseline = "scratch"
        config.grown = tuple(grown)
        config.controls = {name: purpose for name, (_, purpose) in controls.items()}
        if search:
            config.search = {key: tuple(values) for key, values in search.items()}
        if seeds:
            config.seeds = tuple(seeds)
        return config

    def _cost(self, stage: Stage) -> int:
        """What a stage costs, in tokens of the large model."""
        parameters = _parameters(stage["model"], stage.get("sparsity", 0.0))
        return round(stage["tokens"] * parameters / _parameters(self.model()))

    def _taught(self, before: Stage, left: int, objective: Mapping[str, Any]) -> int:
        """What the stage before costs as a teacher of the last one, in tokens of the large model."""
        if objective.get("teacher") != PARENT:
            return 0
        share = self._forward(before)
        return round(share * min(objective.get("weight_tokens") or left, left / (1 + share)))

    def _scored(self, before: Stage, choice: Mapping[str, Any] | None) -> int:
        """What the stage before costs where it chooses the windows of the last one, in tokens of the large model."""
        if not choice or choice["scorer"] != PARENT:
            return 0
        return round(self._forward(before) * choice["tokens"] / choice["keep"])

    def _forward(self, stage: Stage) -> float:
        """What a token costs in the forward pass of a stage's model, in tokens of the large model."""
        return _parameters(stage["model"], stage.get("sparsity", 0.0)) / _parameters(self.model()) / 3

    def _average(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """The model nearest to the average size of the stages, of those between the first one's and the last one's."""
        wanted = average_params([_parameters(one["model"]) for one in stages], [one["tokens"] for one in stages])
        first, last = stages[0]["model"], stages[-1]["model"]
        ends = {name: (first.get(name), last.get(name)) for name in {**last, **first}}
        sizes = {name: (begin, end) for name, (begin, end) in ends.items() if begin != end}
        if not sizes or any(type(size) is not int for both in sizes.values() for size in both):
            raise InputError(f"average_size must lie between models that differ in sizes alone, got {first} and {last}")
        steps = max(abs(end - begin) for begin, end in sizes.values())
        apart = []
        for step in range(steps + 1):
            model = last | {name: begin + round(step * (end - begin) / steps) for name, (begin, end) in sizes.items()}
            with contextlib.suppress(InputError):  # not every point of the line is a model: groups of heads, even sizes
                apart.append((abs(1 / _parameters(model) - 1 / wanted), step, model))
        return min(apart)[-1]


def _parameters(model: dict[str, Any], sparsity: float = 0.0) -> int:
    """Those that cost FLOPs: of a mixture the active ones, of a sparse model the ones that are kept."""
    built = build_model(model)
    return parameter_count(built, active=True, density=density(built, sparsity))


def alone(sweep: ConfigDict, name: str) -> ConfigDict:
    """One run of a sweep, as `growlm train` takes it. Raises InputError for a name that there is not."""
    check_name("run", name, sweep.runs)
    of_sweep = {field.name for field in fields(SweepConfig)}
    return ConfigDict({key: value for key, value in sweep.items() if key not in of_sweep} | dict(sweep.runs[name]))


DEMO = {"embed": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp": 176, "vocab": 256}
# Its halves and thirds are whole, as the schedules of published systems ask.
SIXFOLD = {"embed": 48, "heads": 6, "kv_heads": 6, "head_dim": 8, "mlp": 132, "vocab": 256}
_CPU = Scale(layers=8, widths=DEMO, tokens=2_800_000, batch=8, length=128, base_lr=4e-3, peak_lr=6e-3, tuned_lr=3e-3)
_GPU = Scale(
    layers=24,
    widths={"embed": 256, "heads": 4, "kv_heads": 4, "head_dim": 64, "mlp": 704, "vocab": 256},
    tokens=120_000_000,
    batch=64,
    length=512,
    base_lr=3e-3,
    peak_lr=2e-3,
    tuned_lr=1e-3,
    dtype="bfloat16",
)

# cpu: the demo's model and learning rates, some minutes a run on one core. small: half as wide, on half of the tokens,
# a seventh of the FLOPs. gpu: 19M parameters, 1.4e16 FLOPs a run. tiny: to see that an experiment runs at all.
_SMALL = _CPU.resized({"embed": 32, "heads": 2, "kv_heads": 2, "head_dim": 16, "mlp": 88}, 0.5)
_TINY = {"tokens": 15_000, "batch": 4, "length": 64, "validation_batches": 2}
SCALES = {"cpu": _CPU, "small": _SMALL, "gpu": _GPU, "tiny": replace(_SMALL, **_TINY)}


# The optimizer of arXiv 2609.19107 at its width of 1024. There embedding and head decay too, the decay of matrices has
# the factor of the scale, and the iteration is in bfloat16. Its learning rates are of matrices.
MODERN = {
    "kind": "muon",
    "beta1": 0.8,
    "beta2": 0.95,
    "eps": 1e-10,
    "clip": 0.0,
    "weight_decay": 0.0707,
    "decay": ("matrices",),
    "cautious_decay": True,
    "learning_rates": {"embedding": 0.4525, "head": 0.1131},
    "muon": {
        "momentum_steps": 300,
        "normalise_rows": True,
        "coefficients": "polar_express",
        "variance": "longer",
        "scale": "spectral",
    },
}


def _decayed(size: Scale) -> Scale:
    """Schedules that end at zero, not at a tenth."""
    return replace(size, end_lr_ratio=0.0)


def _modern(size: Scale) -> Scale:
    """The architecture `modern` of as many parameters, Muon with its modern parts, and schedules that end at zero.

    From scratch, cpu ends at 1.495, 1.438, 1.438 and 1.453 nats a byte at 0.005, 0.01, 0.02 and 0.04 (seed 0, at commit
    5487160), on the paper's settings at their best rate at 1.520. Rates of small and of grown models were not searched.
    """
    widths = {**size.widths, "architecture": "modern", "mlp": 3 * size.widths["mlp"] // 2}  # no gate: 2 matrices of 3
    return replace(_decayed(size), widths=widths, optimizer=MODERN, base_lr=0.02, peak_lr=0.02, tuned_lr=None)


# What an experiment stands on, beside the paper's settings, by the end of its variant's name: cpu_modern.
SETTINGS: dict[str, Callable[[Scale], Scale]] = {"decayed": _decayed, "modern": _modern}


def scale(variant: str, **changes: Any) -> Scale:
    """The scale of a name in `SCALES`, with `changes` made for cpu, and small on half their tokens; tiny has its own.

    `NAME_SETTINGS` is the same on other settings than the paper's, a name in `SETTINGS`.

    Raises InputError for a name that there is not.
    """
    name, _, settings = variant.partition("_")
    check_name("variant", name, SCALES)
    if name == "gpu":
        changes = {}
    if name == "tiny":
        changes |= _TINY
    if name == "small" and "tokens" in changes:
        changes["tokens"] //= 2
    size = replace(SCALES[name], **changes)
    if not settings:
        return size
    check_name("settings of the variant", settings, SETTINGS)
    return SETTINGS[settings](size)
