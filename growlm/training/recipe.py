"""Experiments on growth at equal cost: a scale, stages of it, and the sweep around them.

An experiment is a file that picks a scale and says which runs it has. Every run of a sweep made here costs as much as
its baseline, the large model on `tokens` tokens: 6 x parameters x tokens over all stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ml_collections import ConfigDict

from growlm.errors import check_name
from growlm.models import ARCHITECTURES, parameter_count
from growlm.training.config import build_model

Stage = dict[str, Any]
Run = dict[str, Any]


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
    remat: str = "full"
    microbatches: int = 1
    warmup_tokens: int | None = None

    def model(self, layers: int | None = None, **widths: int) -> dict[str, Any]:
        """The large model, or one of other sizes."""
        stack = ARCHITECTURES[self.widths.get("architecture", "llama")].stack
        return {stack.field: self.layers if layers is None else layers, **self.widths, **widths}

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
        batches = {"batch": self.batch, "length": self.length, "microbatches": self.microbatches}
        return {"model": model, "tokens": tokens, **batches, "schedule": schedule, **rest}

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
          operator: of the last growth; its `options` stand in `rest`.
          peak_lr: of the large model; by default the scale's.
          spent: tokens of the large model that the growth itself takes.
          rest: as in `stage`.
        """
        growth = {"operator": operator, "options": rest.pop("options", {}), "optimizer_state": "reset"}
        tokens = self.tokens - spent - sum(map(self._cost, before))
        return {"stages": (*before, self.stage(self.model(), tokens, peak_lr or self.peak_lr, growth=growth, **rest))}

    def scratch(self, peak_lr: float | None = None, model: dict[str, Any] | None = None, **rest: Any) -> Run:
        """A model, by default the large one, from scratch on as many tokens as the budget pays for."""
        model = model or self.model()
        tokens = int(self.tokens * _parameters(self.model()) / _parameters(model))
        return {"stages": (self.stage(model, tokens, peak_lr or self.peak_lr, **rest),)}

    def sweep(
        self, title: str, grown: Mapping[str, Run], controls: Mapping[str, tuple[Run, str]] | None = None
    ) -> ConfigDict:
        """The sweep of the grown runs, of `controls` by name, each a run and its purpose, and of those from scratch."""
        controls = dict(controls or {})
        if self.tuned_lr is not None:
            controls["scratch_tuned"] = (self.scratch(self.tuned_lr), "equal FLOPs and a learning rate of its own")
        config = ConfigDict()
        config.title = title
        config.corpus = "stdlib"
        config.seed = 0
        config.dtype, config.remat = self.dtype, self.remat
        config.evaluation = {"every_tokens": self.part(0.04), "batches": 16}
        config.checkpoint = {"every_tokens": self.part(0.2), "max_to_keep": 1}
        config.runs = {**grown, "scratch": self.scratch(), **{name: run for name, (run, _) in controls.items()}}
        config.baseline = "scratch"
        config.grown = tuple(grown)
        config.controls = {name: purpose for name, (_, purpose) in controls.items()}
        return config

    def _cost(self, stage: Stage) -> int:
        """What a stage costs, in tokens of the large model."""
        return round(stage["tokens"] * _parameters(stage["model"]) / _parameters(self.model()))


def _parameters(model: dict[str, Any]) -> int:
    return parameter_count(build_model(model))


DEMO = {"embed": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp": 176, "vocab": 256}
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

# cpu: the demo's model and learning rates, about a minute a run on two cores. gpu: 19M parameters, 1.4e16 FLOPs a run.
# tiny: to see that an experiment runs at all.
SCALES = {"cpu": _CPU, "gpu": _GPU, "tiny": replace(_CPU, tokens=60_000)}


def scale(variant: str, **changes: Any) -> Scale:
    """The scale of a name in `SCALES`, with `changes` made for cpu and tiny, but for tiny's tokens.

    Raises InputError for a name that there is not.
    """
    check_name("variant", variant, SCALES)
    if variant == "gpu":
        return SCALES[variant]
    if variant == "tiny":
        changes.pop("tokens", None)
    return replace(SCALES[variant], **changes)
