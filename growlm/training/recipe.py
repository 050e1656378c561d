"""What the experiments on growth share: scales, stages of equal total cost, and the settings around them.

An experiment is a file that picks a scale and says which runs it has. Every run of a sweep made here costs as much as
its baseline, the large model on `tokens` tokens, 6 x parameters x tokens over all stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ml_collections import ConfigDict

from growlm.errors import unknown
from growlm.models import parameter_count
from growlm.training.config import build_model

Stage = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How large an experiment is.

    Attributes:
        layers, widths: the large model.
        tokens: of training it from scratch, the budget of every run.
        batch, length: examples and tokens of each.
        base_rate, rate, tuned_rate: peak learning rates of a small model, of a grown one and of the same recipe from
            scratch, and of training from scratch with a rate of its own.
        dtype, remat: as in the settings of a run.
    """

    layers: int
    widths: Mapping[str, int]
    tokens: int
    batch: int
    length: int
    base_rate: float
    rate: float
    tuned_rate: float
    dtype: str
    remat: str = "full"

    def model(self, layers: int | None = None, **widths: int) -> dict[str, int]:
        """The large model, or one of other sizes."""
        return {"layers": self.layers if layers is None else layers, **self.widths, **widths}

    def resized(self, widths: Mapping[str, int], tokens: float) -> "Scale":
        """The same with some other widths, and so many times the tokens."""
        return replace(self, widths={**self.widths, **widths}, tokens=int(tokens * self.tokens))

    def part(self, share: float) -> int:
        """So many of the budget's tokens."""
        return int(share * self.tokens)

    def stage(self, model: dict[str, int], tokens: int, rate: float, kind: str = "cosine", **rest: Any) -> Stage:
        """A stage with a warm-up of 2 % of the budget; the schedule may be set by `schedule`."""
        schedule = {"kind": kind, "peak_lr": rate, "warmup_tokens": self.part(0.02)} | rest.pop("schedule", {})
        how = {"batch": self.batch, "length": self.length, "schedule": schedule}
        return {"model": model, "tokens": tokens, **how, **rest}

    def base(self, share: float, model: dict[str, int] | None = None, rate: float | None = None) -> Stage:
        """A small model, a quarter of the layers by default, on a share of the budget's tokens, at a constant rate."""
        model = model or self.model(self.layers // 4)
        return self.stage(model, self.part(share), rate or self.base_rate, kind="constant")

    def grown(self, before: Sequence[Stage], operator: str, rate: float | None = None, spent: int = 0, **rest: Any):
        """The stages before and the large model, grown by an operator or preset, on what they leave of the budget.

        `spent`: tokens of the large model that the growth itself takes. `options`: of the operator.
        """
        growth = {"operator": operator, "options": rest.pop("options", {}), "optimizer_state": "reset"}
        tokens = self.tokens - spent - sum(map(self._price, before))
        return {"stages": (*before, self.stage(self.model(), tokens, rate or self.rate, growth=growth, **rest))}

    def scratch(self, rate: float | None = None, **rest: Any) -> dict[str, Any]:
        """The large model on the whole budget."""
        return {"stages": (self.stage(self.model(), self.tokens, rate or self.rate, **rest),)}

    def sweep(self, title: str, grown: Mapping[str, Any], others: Mapping[str, Any] | None = None) -> ConfigDict:
        """The sweep of the grown runs, of other controls (name -> (run, purpose)) and of the two from scratch."""
        others = dict(others or {})
        others["scratch_tuned"] = (self.scratch(self.tuned_rate), "equal FLOPs and a learning rate of its own")
        config = ConfigDict()
        config.title = title
        config.corpus = "stdlib"
        config.seed = 0
        config.dtype, config.remat = self.dtype, self.remat
        config.evaluation = {"every_tokens": self.part(0.04), "batches": 16}
        config.checkpoint = {"every_tokens": self.part(0.2), "max_to_keep": 1}
        config.runs = {**grown, "scratch": self.scratch(), **{name: run for name, (run, _) in others.items()}}
        config.baseline = "scratch"
        config.grown = tuple(grown)
        config.controls = {name: purpose for name, (_, purpose) in others.items()}
        return config

    def _price(self, stage: Stage) -> int:
        """What a stage costs, in tokens of the large model."""
        whole, own = (parameter_count(build_model(model)) for model in (self.model(), stage["model"]))
        return round(stage["tokens"] * own / whole)


_DEMO = {"embed": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp": 176, "vocab": 256}
_MIDDLE = {"embed": 256, "heads": 4, "kv_heads": 4, "head_dim": 64, "mlp": 704, "vocab": 256}
_CPU = Scale(8, _DEMO, 2_800_000, 8, 128, 4e-3, 6e-3, 3e-3, "float32")

# cpu: the demo's model and rates, about a minute a run on two cores. gpu: 19M parameters, 1.4e16 FLOPs a run. tiny: to
# see that an experiment runs at all.
SCALES = {
    "cpu": _CPU,
    "gpu": Scale(24, _MIDDLE, 120_000_000, 64, 512, 3e-3, 2e-3, 1e-3, "bfloat16"),
    "tiny": replace(_CPU, tokens=60_000),
}


def scale(variant: str, **changes: Any) -> Scale:
    """The scale of that name, with `changes` made for cpu and tiny, where a sweep asks for other sizes there.

    Raises InputError for a name that there is not.
    """
    if variant not in SCALES:
        raise unknown("variant", variant, SCALES)
    if variant == "gpu":
        return SCALES[variant]
    if variant == "tiny":
        changes.pop("tokens", None)
    return replace(SCALES[variant], **changes)
