"""The settings of stages, runs and sweeps: frozen dataclasses that check themselves and keep what was written."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growlm.data import read_sources
from growlm.errors import InputError, check_count, check_name, check_range, must_be, unknown
from growlm.growth import OPTIMIZER_STATES, PRESETS, resolve
from growlm.models import REMAT_POLICIES, DecoderConfig
from growlm.training.checkpoint import CheckpointConfig
from growlm.training.choice import ChoiceConfig
from growlm.training.criteria import GrowWhen
from growlm.training.mesh import MeshConfig
from growlm.training.objectives import PARENT, ObjectiveConfig
from growlm.training.optimizer import SLICES, TRAIN, OptimizerConfig
from growlm.training.schedules import ScheduleConfig
from growlm.training.sparsity import check_sparsity


@dataclasses.dataclass(frozen=True)
class GrowthConfig:
    """How a stage starts from the one before it, and what of it is trained.

    Attributes:
      operator: a name in growlm.growth's `OPERATORS`, or in `PRESETS`, which stands for an operator with options; or
        "probe", with the fields of `Probe` as options: the stage begins with the best of several growths.
      options: of the operator; they override a preset's.
      optimizer_state: "reset", "map", "map_aged" or "keep_old"; None: the preset's, or "reset".
      train: "all", or only what the growth added ("new") or did not ("old"); None: the preset's, or "all".
    """

    operator: str = "direct"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer_state: str | None = None
    train: str | None = None

    def __post_init__(self):
        if self.probe is None:
            resolve(self.operator, self.options)
        for name, allowed in (("optimizer_state", OPTIMIZER_STATES), ("train", TRAIN)):
            if getattr(self, name) is not None:
                check_name(f"growth.{name}", getattr(self, name), allowed)

    @property
    def resolved(self) -> "GrowthConfig":
        """What the names stand for: an operator with all its options, and no None; of a probe, of its candidates."""
        if probe := self.probe:
            candidates = {name: dataclasses.asdict(growth.resolved) for name, growth in probe.candidates.items()}
            return GrowthConfig(PROBE, {"candidates": candidates, "steps": probe.steps})
        preset = resolve(self.operator, self.options)
        return GrowthConfig(
            operator=preset.operator,
            options=preset.options,
            optimizer_state=self.optimizer_state or preset.optimizer_state,
            train=self.train or preset.train,
        )

    @property
    def probe(self) -> "Probe | None":
        """What is tried, if this is a probe. Raises InputError."""
        return Probe.of(self) if self.operator == PROBE else None


PROBE = "probe"


@dataclasses.dataclass(frozen=True)
class Probe:
    """Growths that are tried on one state and the same batches, of which the best is taken (LAG, arXiv 2406.02469).

    Attributes:
      candidates: the growths by name; in a config, the settings of each, or a list of names of operators and presets.
        optimizer_state and train that one does not say are those of the probe.
      steps: updates of each, with the stage's schedule, after which validation losses are compared: more than those
        over which the loss is raised by a growth.
    """

    candidates: dict[str, GrowthConfig]
    steps: int

    @classmethod
    def of(cls, growth: GrowthConfig) -> "Probe":
        """The probe that a growth's options describe. Raises InputError."""
        names = [field.name for field in dataclasses.fields(cls)]
        if extra := sorted(growth.options.keys() - set(names)):
            raise unknown("option of probe", extra[0], names)
        given, steps = growth.options.get("candidates"), growth.options.get("steps")
        if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
            given = {name: {"operator": name} for name in given}
        if not isinstance(given, Mapping) or not given or not all(isinstance(one, Mapping) for one in given.values()):
            raise must_be("probe.candidates", "growths by name or a list of operators, one at least", given)
        check_count("probe.steps", steps, low=1)
        return cls({str(name): cls._candidate(growth, name, dict(one)) for name, one in given.items()}, steps)

    @staticmethod
    def _candidate(growth: GrowthConfig, name: str, settings: dict[str, Any]) -> GrowthConfig:
        where, names = f"candidate {name}", [field.name for field in dataclasses.fields(GrowthConfig)]
        if extra := sorted(settings.keys() - set(names)):
            raise unknown("config key", extra[0], names, where=where)
        if settings.get("operator") == PROBE:
            raise must_be(f"{where}.operator", "no probe", PROBE)
        shared = {"optimizer_state": growth.optimizer_state, "train": growth.train}
        try:
            return GrowthConfig(**shared | settings)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Validation loss on fixed batches, at both ends of a stage, and benchmarks, where a run leaves it.

    Attributes:
      every_tokens: tokens of training between validation losses inside of a stage; 0: none there.
      batches: number of validation batches.
      batch: examples in each; 0: the stage's batch, which may not fit a device without microbatches.
      length: tokens of an example; 0: the stage's. With batch and length given, all stages and runs are measured on
        the same text, whatever they train on.
      corpus: what is validated on, as a run names its own; None: the run's, and where that has none the stage's. Of
        several sources there are `batches` of each, and their losses; val_loss is the mean by their weights.
      tasks: benchmarks, as `growlm evaluate` takes them.
      tasks_every_tokens: tokens of training between benchmarks inside of a stage; 0: none there.
      data_dir: folder with the benchmarks' data; None: it is downloaded.
      limit: documents of each benchmark; 0: all.
      prompts: texts that the model continues where a stage begins by a growth and where a run leaves it. The texts are
        kept in metrics.jsonl as `samples`.
      prompts_every_tokens: tokens of training between such texts inside of a stage; 0: none there.
      prompt_tokens: tokens that it writes after each.
    """

    every_tokens: int = 0
    batches: int = 8
    batch: int = 0
    length: int = 0
    corpus: str | dict[str, Any] | None = None
    tasks: tuple[str, ...] = dataclasses.field(default=(), metadata={"separator": ","})
    tasks_every_tokens: int = 0
    data_dir: str | None = None
    limit: int = 0
    prompts: tuple[str, ...] = ()
    prompts_every_tokens: int = 0
    prompt_tokens: int = 96

    def __post_init__(self):
        for name in ("every_tokens", "batch", "length", "tasks_every_tokens", "prompts_every_tokens", "limit"):
            check_range(f"evaluation.{name}", getattr(self, name), low=0)
        check_range("evaluation.batches", self.batches, low=1)
        check_range("evaluation.prompt_tokens", self.prompt_tokens, low=1)
        if self.corpus is not None:
            read_sources(self.corpus, "evaluation.corpus")
        for name in ("tasks_every_tokens", "data_dir", "limit"):
            if getattr(self, name) and not self.tasks:
                raise must_be(f"evaluation.{name}", "unset without evaluation.tasks", getattr(self, name))
        if self.prompts_every_tokens and not self.prompts:
            rule = "unset without evaluation.prompts"
            raise must_be("evaluation.prompts_every_tokens", rule, self.prompts_every_tokens)


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage: a model trained on a budget of tokens.

    Attributes:
      model: the shape, of any architecture.
      tokens: budget; a remainder smaller than a batch is not trained on. 0: nothing is trained, the next stage grows
        what is there: fresh weights, or those of init_from. 0 in the last stage of a run with budget_flops: what that
        leaves.
      batch: examples of an update.
      length: tokens of an example.
      schedule, optimizer: of this stage alone.
      growth: how it starts from the stage before; None in the first stage alone.
      grow_when: a rule by which the stage may end before its tokens, and the next one begins; None: it does not.
      frozen_layers: number of first layers that, with the embedding, are constants and cost no backward pass.
      submodel_layers: layers by which sub-models differ (bert2BERT's first stage, arXiv 2110.07143): every step is of
        the first k, 2k, ... layers, drawn at random, of which it trains the last k and what is above them, the first
        with the embedding. 0: every step is of the whole model.
      objective: what is trained on.
      choice: how the windows of text are chosen that it is trained on; None: all are.
      sparsity: the share of the matrices of blocks that is zero under a static mask (SPDF, arXiv 2303.10464); after a
        growth at most that of the stage before.
      microbatches: parts in which a batch is worked on, one after the other, for less memory.
      evaluation: in this stage, instead of the run's.
      corpus: of this stage, instead of the run's. Every source goes on after the examples that it has given before.
      init_from: in the first stage, the checkpoint whose weights it begins with: a Hugging Face folder, or one of
        growlm train, of a sweep's run or of growlm grow. Optimizer state, counters, schedule and position in the data
        are new.
      init_fingerprint: hash of what init_from holds; filled in when a run begins, and kept in its config.json.
    """

    model: DecoderConfig
    tokens: int
    batch: int
    length: int
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    growth: GrowthConfig | None = None
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    choice: ChoiceConfig | None = None
    grow_when: GrowWhen | None = None
    frozen_layers: int = 0
    submodel_layers: int = 0
    sparsity: float = 0.0
    microbatches: int = 1
    evaluation: EvaluationConfig | None = None
    corpus: str | dict[str, Any] | None = None
    init_from: str | None = None
    init_fingerprint: str | None = None

    def __post_init__(self):
        check_range("stage.batch", self.batch, low=1)
        check_range("stage.microbatches", self.microbatches, low=1)
        if self.batch % self.microbatches:
            raise must_be("stage.microbatches", f"a divisor of stage.batch, {self.batch}", self.microbatches)
        check_range("stage.length", self.length, low=1)
        self.model.check_length("stage.length", self.length)
        if self.corpus is not None:
            read_sources(self.corpus, "stage.corpus")
        if self.tokens < self.batch * self.length and self.tokens != 0:
            least = f"{self.batch} x {self.length} = {self.batch * self.length}"
            raise must_be("stage.tokens", f"at least one batch, {least}, or 0", self.tokens)
        if self.init_fingerprint is not None and self.init_from is None:
            raise must_be("stage.init_fingerprint", "unset without stage.init_from", self.init_fingerprint)
        check_range("stage.frozen_layers", self.frozen_layers, low=0, high=self.model.depth)
        check_range("stage.submodel_layers", self.submodel_layers, low=0, high=self.model.depth)
        if self.submodel_layers and self.model.depth % self.submodel_layers:
            raise must_be(
                "stage.submodel_layers", f"a divisor of {self.model.depth} layers, or 0", self.submodel_layers
            )
        if self.submodel_layers and self.frozen_layers:
            raise must_be("stage.frozen_layers", "0 where sub-models freeze what is below them", self.frozen_layers)
        check_sparsity(self.model, self.sparsity)
        if self.choice and 0 < self.choice.tokens < self.batch * self.length:
            least = f"at least one batch, {self.batch} x {self.length} = {self.batch * self.length}, or 0"
            raise must_be("choice.tokens", least, self.choice.tokens)
        by_slices = [name for name in self.optimizer.learning_rates if name in SLICES]
        if by_slices and self.growth is None:
            raise must_be("optimizer.learning_rates", "without 'new' and 'old' in a stage without growth", by_slices[0])
        if self.schedule.rewarm_tokens and self.growth is None:
            raise must_be("schedule.rewarm_tokens", "0 in a stage without growth", self.schedule.rewarm_tokens)

    @property
    def train(self) -> str:
        """What of the model is trained, by provenance."""
        return self.growth.resolved.train if self.growth else "all"


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run: stages one after the other, at one seed.

    Attributes:
      stages: the first without a growth, all others with one; with `system` the target's alone.
      system: a published system, a name in growlm.growth's `PRESETS`, that takes the place of training the one stage
        from scratch: its tokens are the budget, its other settings those of all stages of the system.
      system_options: options of the system's growths that override its own.
      seed: of initial values, batches and whatever growth draws.
      corpus: of all stages that name none, and what all are validated on: "stdlib" (Python's own library, as bytes), a
        path of text or of what `growlm prepare` wrote, or several of these with weights, as `read_sources` takes them.
        None where every stage names its own; else None stands for "stdlib".
      dtype: of computing, "float32" or "bfloat16"; parameters are float32.
      remat: what is computed again in the backward pass, a name in growlm.models' `REMAT_POLICIES`.
      unroll: how many layers one turn of the loop over layers computes. More of them compile longer, and on GPUs train
        faster: what the backward pass needs is copied less.
      document_mask: attention stays within documents, of which a batch packs several; the paper's does not.
      mesh: how devices share the work.
      log_every_steps: updates between lines of metrics.jsonl.
      budget_flops: 6 N D of all stages and growths together, of which the last stage, with 0 tokens, trains what is
        left. 0: every stage says its tokens.
      evaluation, checkpoint: what is measured and kept, and how often.
    """

    stages: tuple[StageConfig, ...]
    system: str | None = None
    system_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    corpus: str | dict[str, Any] | None = None
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    document_mask: bool = False
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    log_every_steps: int = 10
    budget_flops: float = 0.0
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def __post_init__(self):
        check_name("dtype", self.dtype, ("float32", "bfloat16"))
        check_name("remat", self.remat, REMAT_POLICIES)
        check_range("seed", self.seed, low=0, high=2**31 - 1)
        check_range("unroll", self.unroll, low=1)
        check_range("log_every_steps", self.log_every_steps, low=1)
        check_range("budget_flops", self.budget_flops, low=0)
        if not self.stages:
            raise must_be("stages", "at least one", self.stages)
        if self.corpus is None and any(stage.corpus is None for stage in self.stages):
            object.__setattr__(self, "corpus", "stdlib")
        if self.corpus is not None:
            read_sources(self.corpus)
        last = len(self.stages) - 1
        for number, stage in enumerate(self.stages):
            if (number > 0) != (stage.growth is not None):
                rule = "needs a growth" if number else "takes no growth: it is what the next one grows"
                raise InputError(f"stages[{number}] {rule}")
            if number and stage.init_from is not None:
                raise must_be(f"stages[{number}].init_from", "unset after the first stage", stage.init_from)
            before = self.stages[number - 1]
            if number and stage.sparsity and (stage.sparsity > before.sparsity or stage.model != before.model):
                most = before.sparsity if stage.model == before.model else 0.0
                raise must_be(f"stages[{number}].sparsity", f"<= {most:g}, of what is masked", stage.sparsity)
            read = {"objective.teacher": stage.objective.teacher, "choice.scorer": stage.choice and stage.choice.scorer}
            for name, place in read.items():
                if place == PARENT and not (number and self.stages[number - 1].tokens):
                    rule = f"a checkpoint where no stage before it was trained, and not {PARENT!r}"
                    raise must_be(f"stages[{number}].{name}", rule, PARENT)
            if stage.choice and not (stage.choice.tokens or stage.tokens):
                raise must_be(f"stages[{number}].choice.tokens", "> 0 where the stage does not say its tokens", 0)
            if stage.grow_when and number == last:
                raise must_be(f"stages[{number}].grow_when", "unset where no stage follows", stage.grow_when.rule)
            if stage.grow_when and not (stage.evaluation or self.evaluation).every_tokens:
                raise must_be("evaluation.every_tokens", f"> 0 for stages[{number}].grow_when to be judged", 0)
        if not self.budget_flops and not self.stages[last].tokens:
            raise must_be(f"stages[{last}].tokens", "> 0 where no stage follows", 0)
        for name in ("tokens", "submodel_layers"):
            if self.budget_flops and (value := getattr(self.stages[last], name)):
                raise must_be(f"stages[{last}].{name}", "0 where budget_flops says its tokens", value)
        if self.system is not None:
            self._check_system()
        elif self.system_options:
            raise must_be("system_options", "{} without a system", self.system_options)

    def _check_system(self) -> None:
        """Raises InputError where the stage says what is the system's to say."""
        check_name("system", self.system, PRESETS)
        if len(self.stages) != 1:
            raise must_be("stages", f"one, the target of system {self.system!r}", len(self.stages))
        stage = self.stages[0]
        for name in ("init_from", "frozen_layers", "submodel_layers", "sparsity", "choice"):
            if getattr(stage, name):
                raise must_be(f"stages[0].{name}", f"unset with system {self.system!r}", getattr(stage, name))
        if self.budget_flops:
            raise must_be("budget_flops", "0 with a system, whose budget is its target's", self.budget_flops)
        if stage.schedule.at_growth != "restart":
            raise must_be("stages[0].schedule.at_growth", "the system's, and unset", stage.schedule.at_growth)
        resolve(self.system, self.system_options)

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Examples that devices share out at once, by setting; 0 for a validation batch that is as training's."""
        sizes = {}
        for number, stage in enumerate(self.stages):
            sizes[f"stages[{number}].batch / microbatches"] = stage.batch // stage.microbatches
            sizes[f"evaluation.batch of stages[{number}]"] = (stage.evaluation or self.evaluation).batch
        return sizes


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """A search: runs that become the best of their tries by the last validation loss, at the first seed.

    Attributes:
      key: what is searched, as names of runs have it.
      tries: run -> run of the sweep that tries a value -> the value.
    """

    key: str
    tries: dict[str, dict[str, Any]]

    def __post_init__(self):
        if not self.tries or not all(self.tries.values()):
            raise must_be("search.tries", "runs with at least one try each", self.tries)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Runs by name, and how a report compares them.

    A config may say `vary: {KEY: values}`, of all runs or in one: the run is made once a value, or once a combination
    of values, as NAME@KEY=VALUE. As the baseline the first of them is taken. And `search: {KEY: values}`: the run NAME
    is the best of NAME@KEY=VALUE by the last validation loss at the first seed. Baseline and grown runs must have as
    many tries as each other; a control opts out with `search: {}`. KEY is a path as on the command line, with -1 for
    the last stage, or a name in growlm.training.variants' `SHORT`, such as peak_lr.

    Attributes:
      runs: each has a folder of its name; those that share their first stages share the work.
      baseline: name of the run that speed-ups are measured against.
      title: of the report.
      grown: names of the runs that a claim is made for; every other is a control.
      controls: name -> what the control is for.
      seeds: the sweep is trained once a seed, each into the folder seed-N, in the place of the runs' `seed`.
      search: as it was spelled out: whose tries which runs are.
    """

    runs: dict[str, RunConfig]
    baseline: str
    title: str = ""
    grown: tuple[str, ...] = ()
    controls: dict[str, str] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    search: SearchConfig | None = None

    def __post_init__(self):
        if not self.runs:
            raise must_be("runs", "at least one", self.runs)
        for trial in (owners := self.owners):
            if trial not in self.runs:
                raise unknown("run", trial, self.runs, where="search.tries")
        names = {*self.runs} - {*owners} | {*owners.values()}
        for name in (self.baseline, *self.grown, *self.controls):
            if name not in names:
                raise unknown("run", name, names, where="baseline, grown or controls")
        for seed in self.seeds:
            check_range("seeds", seed, low=0, high=2**31 - 1)
        if len({*self.seeds}) < len(self.seeds):
            raise must_be("seeds", "without one twice", self.seeds)
        if own := [run.seed for run in self.runs.values() if self.seeds and run.seed]:
            raise must_be("seed of a run", "unset where the sweep has seeds", own[0])
        for name in {**self.runs, **dict.fromkeys(names)}:
            taken = name in ("", "..", "stages", "compiled", "profile") or str(name).endswith(
                (".json", ".html", ".png")
            )
            if not isinstance(name, str) or taken or Path(name).name != name:
                raise must_be("run name", "the name of a folder that the sweep does not use itself", name)

    @property
    def owners(self) -> dict[str, str]:
        """The searched run of every try."""
        searched = self.search.tries if self.search else {}
        return {trial: name for name, tries in searched.items() for trial in tries}

    @property
    def by_seed(self) -> dict[str, "SweepConfig"]:
        """The sweep of each seed by its folder; without `seeds` the sweep itself, whose folder is ""."""
        if not self.seeds:
            return {"": self}
        return {
            f"seed-{seed}": dataclasses.replace(
                self,
                seeds=(),
                runs={name: dataclasses.replace(run, seed=seed) for name, run in self.runs.items()},
            )
            for seed in self.seeds
        }

    @property
    def run_folders(self) -> list[str]:
        """The folders of all runs, in the order in which they are trained: the tries before their run.

        They are NAME, or seed-N/NAME with seeds. Values are tried at the first seed alone.
        """
        found: dict[str, None] = {}
        owners = self.owners
        for number, folder in enumerate(self.by_seed):
            for name in self.runs:
                owner = owners.get(name, name)
                if not number:
                    found[run_folder(folder, name)] = None
                found.pop(run_folder(folder, owner), None)  # it comes after the last of its tries
                found[run_folder(folder, owner)] = None
        return list(found)


def run_folder(seed: str, name: str) -> str:
    """The folder of a run in that of the sweep. `seed`: the folder of the seed, "" without seeds."""
    return f"{seed}/{name}" if seed else name
