"""The settings of runs and sweeps: frozen dataclasses that check themselves, and name what is allowed."""

import dataclasses
from pathlib import Path
from typing import Any

from growlm.errors import InputError, check_name, check_range, unknown
from growlm.growth import OPTIMIZER_STATES, resolve
from growlm.models import REMAT_POLICIES, DecoderConfig
from growlm.training.groups import SLICES, TRAIN
from growlm.training.optimizer import OptimizerConfig
from growlm.training.schedules import ScheduleConfig


@dataclasses.dataclass(frozen=True)
class GrowthConfig:
    """How a stage starts from the one before it, and what of it is trained.

    operator: an operator or a preset, which stands for an operator with options; those given here override its own, and
    what is held is what it stands for. optimizer_state: "reset", "map" or "map_aged"; train: "all", or only what the
    growth added ("new") or did not ("old"); where they are not given, a preset's, or else "reset" and "all".
    """

    operator: str = "direct"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer_state: str | None = None
    train: str | None = None

    def __post_init__(self):
        resolved = resolve(self.operator, self.options)
        for name in ("operator", "options"):
            object.__setattr__(self, name, getattr(resolved, name))
        for name, allowed in (("optimizer_state", OPTIMIZER_STATES), ("train", TRAIN)):
            value = getattr(self, name)
            object.__setattr__(self, name, getattr(resolved, name) if value is None else value)
            check_name(f"growth.{name}", getattr(self, name), allowed)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices share the work: copies of the model (data), its parts (fsdp), parts of its products (tensor).

    data = 0: as many copies as there are devices left. What a run computes does not depend on it but for rounding.
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        check_range("mesh.data", self.data, low=0)
        check_range("mesh.fsdp", self.fsdp, low=1)
        check_range("mesh.tensor", self.tensor, low=1)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Validation loss on `batches` fixed batches: at both ends of a stage and, if set, every so many tokens.

    batch: examples in each; 0: as many as the stage trains on, which may be more than a device can hold without
    microbatches, or than there is text to validate on.
    length: tokens in each example; 0: as many as the stage has. With batch and length given, the validation losses of
    all stages and runs are of the same text, whatever these train on.
    tasks: benchmarks, as `growlm evaluate` has them: where a run leaves the stage and, if set, every
    tasks_every_tokens. data_dir: a folder with their data; None: as they fetch it. limit: the first so many documents
    of each; 0: all.
    """

    every_tokens: int = 0
    batches: int = 8
    batch: int = 0
    length: int = 0
    tasks: tuple[str, ...] = dataclasses.field(default=(), metadata={"separator": ","})
    tasks_every_tokens: int = 0
    data_dir: str | None = None
    limit: int = 0

    def __post_init__(self):
        check_range("evaluation.tasks_every_tokens", self.tasks_every_tokens, low=0)
        check_range("evaluation.limit", self.limit, low=0)
        for name in ("tasks_every_tokens", "data_dir", "limit"):
            if getattr(self, name) and not self.tasks:
                raise InputError(f"evaluation.{name} is {getattr(self, name)!r} without evaluation.tasks: name some")
        check_range("evaluation.batch", self.batch, low=0)
        check_range("evaluation.length", self.length, low=0)
        check_range("evaluation.every_tokens", self.every_tokens, low=0)
        check_range("evaluation.batches", self.batches, low=1)


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage: a shape trained for `tokens` tokens, in batches of `batch` examples of `length` tokens.

    microbatches: a batch is worked on in so many parts, one after the other, and is updated on once: less memory.
    frozen_layers: so many of the first layers and the embedding are constants, and cost no backward pass.
    submodel_layers: every step is of a sub-model, the first so many layers, or twice, thrice as many, drawn at random;
    of it the last so many train and what is above them, the first with the embedding (bert2BERT's first stage). With 0
    every step is of the whole model.
    evaluation: in this stage, instead of the run's.
    init_from: in the first stage, the folder whose weights it begins with: a Hugging Face checkpoint, or one of growlm
    train, of a sweep's run or of growlm grow. All else is new: the optimizer's state, the counters, the schedule and
    the position in the data. With tokens = 0 nothing is trained here: the next stage grows what is there.
    init_fingerprint: of what the folder holds; filled in when a run begins, and kept in its config.json.
    """

    model: DecoderConfig
    tokens: int
    batch: int
    length: int
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    growth: GrowthConfig | None = None
    frozen_layers: int = 0
    submodel_layers: int = 0
    microbatches: int = 1
    evaluation: EvaluationConfig | None = None
    init_from: str | None = None
    init_fingerprint: str | None = None

    def __post_init__(self):
        check_range("stage.batch", self.batch, low=1)
        check_range("stage.microbatches", self.microbatches, low=1)
        if self.batch % self.microbatches:
            raise InputError(f"stage.microbatches must be divisors of batch, {self.batch}, got {self.microbatches}")
        check_range("stage.length", self.length, low=1)
        only_begins = self.init_from is not None and self.tokens == 0
        if self.tokens < self.batch * self.length and not only_begins:
            raise InputError(
                f"stage.tokens is {self.tokens}, smaller than one batch: "
                f"{self.batch} x {self.length} = {self.batch * self.length} tokens"
            )
        if self.init_fingerprint is not None and self.init_from is None:
            raise InputError("stage.init_fingerprint is of what init_from holds: allowed is none without it")
        check_range("stage.frozen_layers", self.frozen_layers, low=0, high=self.model.depth)
        self._check_submodels()
        by_slices = [name for name in self.optimizer.learning_rates if name in SLICES]
        if by_slices and self.growth is None:
            raise InputError(
                f"{by_slices[0]!r} in a stage without growth: new and old is what a growth makes of weights"
            )

    def _check_submodels(self) -> None:
        layers = self.model.depth
        check_range("stage.submodel_layers", self.submodel_layers, low=0, high=layers)
        if self.submodel_layers and layers % self.submodel_layers:
            raise InputError(
                f"stage.submodel_layers must be divisors of model.layers, , got {self.submodel_layers}{layers}, and 0"
            )
        if self.submodel_layers and self.frozen_layers:
            raise InputError(
                f"stage.submodel_layers is {self.submodel_layers} and stage.frozen_layers {self.frozen_layers}: "
                "allowed is one of the two, sub-models freeze what is below them"
            )

    @property
    def train(self) -> str:
        """What of the model is trained, by provenance."""
        return self.growth.train if self.growth else "all"

    @property
    def steps(self) -> int:
        """Whole batches in the budget; a remainder smaller than a batch is not trained on."""
        return self.tokens // (self.batch * self.length)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint every so many tokens (0: only where a stage ends), of which the last `max_to_keep` stay."""

    every_tokens: int = 0
    max_to_keep: int = 2

    def __post_init__(self):
        check_range("checkpoint.every_tokens", self.every_tokens, low=0)
        check_range("checkpoint.max_to_keep", self.max_to_keep, low=1)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run: stages one after the other, on one corpus and seed. dtype is the compute dtype; parameters are float32.

    document_mask: attention stays within documents, of which a batch packs several; the paper's does not.
    """

    stages: tuple[StageConfig, ...]
    seed: int = 0
    corpus: str = "stdlib"
    dtype: str = "float32"
    remat: str = "none"
    document_mask: bool = False
    mesh: MeshConfig = MeshConfig()
    log_every_steps: int = 10
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    def __post_init__(self):
        check_name("dtype", self.dtype, ("float32", "bfloat16"))
        check_name("remat", self.remat, REMAT_POLICIES)
        check_range("seed", self.seed, low=0, high=2**31 - 1)
        check_range("log_every_steps", self.log_every_steps, low=1)
        if not self.stages:
            raise InputError("stages is empty: a run needs at least one")
        for number, stage in enumerate(self.stages):
            if (number > 0) != (stage.growth is not None):
                rule = "needs a growth" if number else "takes no growth: it is what the next one grows"
                raise InputError(f"stages[{number}] {rule}")
            if number and (stage.init_from, stage.init_fingerprint) != (None, None):
                raise InputError(f"stages[{number}] takes no init_from: allowed is one in the first stage")
        if not self.stages[-1].tokens:
            raise InputError("stages[0].tokens is 0 and there is no second stage: nothing would be trained")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Runs by name, and which of them the others are measured against."""

    runs: dict[str, RunConfig]
    baseline: str
    title: str = ""
    grown: tuple[str, ...] = ()
    controls: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.runs:
            raise InputError("runs is empty: a sweep needs at least one")
        for name in (self.baseline, *self.grown, *self.controls):
            if name not in self.runs:
                raise unknown("run", name, self.runs, where="baseline, grown or controls")
        for name in self.runs:
            taken = name in ("", "..", "stages", "compiled", "profile") or str(name).endswith(
                (".json", ".html", ".png")
            )
            if not isinstance(name, str) or taken or Path(name).name != name:
                raise InputError(f"run name {name!r}: allowed is a folder's name, none that the sweep uses itself")
