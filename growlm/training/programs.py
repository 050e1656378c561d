"""Compiled programs: made once, ahead of need where there is time, and cached on disk for the next process."""

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding
from jax.stages import Lowered

from growlm.growth import Growth, growth_key
from growlm.growth.masks import MASKED
from growlm.growth.plan import initial_provenance
from growlm.growth.state import Prepared, growth_transform
from growlm.models.sharding import shardings_of
from growlm.training.mesh import by_rows, replicated
from growlm.training.optimizer import make_optimizer
from growlm.training.sparsity import abstract_kept
from growlm.training.stages import Stage
from growlm.training.step import StepSpec, abstract_state, averaged, train_step, validation_loss

MAX_PROGRAMS = 64  # each holds memory maps, and a process may have 65,530
CACHE_BYTES = 2 * 10**9
CACHED_SECONDS = 0.1  # of compiling, from which on a program is cached: by JAX's one second few of a start's would be

_programs: OrderedDict[Hashable, Future] = OrderedDict()
_background = ThreadPoolExecutor(1, thread_name_prefix="compile")


def compiled(key: Hashable, build: Callable[[], Any]) -> Any:
    """The program of that key, built now unless it is there; where it is being built it is waited for."""
    if key not in _programs:
        future: Future = Future()
        future.set_result(build())
        _store(key, future)
    return _programs[key].result()


def compile_ahead(key: Hashable, build: Callable[[], Any]) -> None:
    """Begin to build the program of that key in the background, unless it is there."""
    if key not in _programs:
        _store(key, _background.submit(build))


def compiling() -> bool:
    """Whether a program is being built in the background: an ordinary exit would wait for it."""
    return not all(future.done() for future in _programs.values())


def forget_programs() -> None:
    """Drop all programs."""
    _programs.clear()


def _store(key: Hashable, future: Future) -> None:
    _programs[key] = future
    while len(_programs) > MAX_PROGRAMS:
        _programs.popitem(last=False)


def compile_steps(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> tuple[Callable, Callable]:
    """The compiled train step and evaluation step. The runs of a sweep that share a shape share the programs.

    step(arrays, tokens, learning rate, provenance, progress, **more) -> (arrays, metrics); the arrays are donated.
    evaluate(params, tokens, provenance, progress) -> `validation_loss` of the whole model. progress is None without
    masks; `more` are the teacher and the static masks, where there are any.
    """
    (step_key, step), (evaluation_key, evaluation) = _builders(spec, batch, length, mesh)
    return compiled(step_key, step), compiled(evaluation_key, evaluation)


def compile_steps_ahead(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> None:
    """Begin to compile the two in the background."""
    for key, build in _builders(spec, batch, length, mesh):
        compile_ahead(key, build)


def must_compile(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> bool:
    """Whether `compile_steps` would have to compile, or to wait until that is done."""
    futures = [_programs.get(key) for key, _ in _builders(spec, batch, length, mesh)]
    return not all(future and future.done() for future in futures)


def _builders(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> tuple[tuple[Hashable, Callable], ...]:
    # The sub-models of a stage share the evaluation.
    whole, trained = spec.for_evaluation(), (batch, length)
    kinds = (_build_step, spec, trained), (_build_evaluation, whole, spec.held_out or trained)
    return tuple(((build.__name__, of, *shape, mesh), partial(build, of, *shape, mesh)) for build, of, shape in kinds)


def _build_step(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> Callable:
    return lower_step(spec, batch, length, mesh).compile()


def lower_step(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> Lowered:
    """The train step lowered for the devices of the mesh, which need not be here."""
    state = abstract_state(spec.model, spec.optimizer, mesh)
    out = jax.tree.map(lambda leaf: leaf.sharding, state.arrays), replicated(mesh)
    step = jax.jit(partial(train_step, spec), donate_argnums=0, out_shardings=out)
    inputs = _abstract_inputs(spec, batch, length, mesh)
    with jax.set_mesh(mesh):
        return step.lower(state.arrays, *inputs, **_abstract_more(spec, mesh))


def _build_evaluation(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> Callable:
    state = abstract_state(spec.model, spec.optimizer, mesh)
    evaluate = jax.jit(partial(validation_loss, spec), out_shardings=replicated(mesh))
    tokens, _, provenance, progress = _abstract_inputs(spec, batch, length, mesh)
    with jax.set_mesh(mesh):
        return evaluate.lower(state.params, tokens, provenance, progress).compile()


def _abstract_inputs(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> tuple[Any, ...]:
    """Tokens, learning rate, provenance and progress; all but the tokens are replicated."""

    def abstract(shape: tuple[int, ...], dtype: str, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return (
        abstract((batch, length + 1), "int32", by_rows(mesh)),
        abstract((2,) if spec.two_rates else (), "float32", replicated(mesh)),
        jax.tree.map(partial(_replicated, mesh), initial_provenance(spec.model)),
        abstract((len(MASKED),), "float32", replicated(mesh)) if spec.masks else None,
    )


def _abstract_more(spec: StepSpec, mesh: Mesh) -> dict[str, Any]:
    """The arguments of the train step that only some objectives and sparse stages have."""
    more: dict[str, Any] = {}
    if spec.teacher is not None:
        params = abstract_state(spec.teacher, spec.optimizer, mesh).params
        more["teacher"] = params, jax.ShapeDtypeStruct((), "float32", sharding=replicated(mesh))
    if spec.sparsity:
        more["kept"] = abstract_kept(spec.model, spec.sparsity, mesh)
    return more


def prepared_growth(stage: Stage, mesh: Mesh) -> Prepared:
    """The growth with which a stage begins, compiled."""
    return compiled(("growth", stage.growth_hash, mesh), partial(_prepare_growth, stage, mesh))


def prepare_growth_ahead(stage: Stage, mesh: Mesh) -> None:
    """Begin to compile it in the background."""
    compile_ahead(("growth", stage.growth_hash, mesh), partial(_prepare_growth, stage, mesh))


def _prepare_growth(stage: Stage, mesh: Mesh) -> Prepared:
    config, transform = stage.config.growth.resolved, lower_growth(stage, mesh).compile()
    request = {"operator": config.operator, "options": config.options, "optimizer_state": config.optimizer_state}
    if not stage.growth.learner:
        return Prepared(stage.growth, transform, request)
    begin, step = (lowered.compile() for lowered in lower_learning(stage, mesh))
    learning = (lambda key: begin(jax.device_put(key, replicated(mesh))), step)
    return Prepared(stage.growth, transform, request, learning)


def lower_growth(stage: Stage, mesh: Mesh) -> Lowered:
    """The growth with which a stage begins, lowered as by `lower_step`: of (arrays, the run's key, matrices)."""
    config, parent, growth = stage.config, stage.parent.config, stage.growth
    source = abstract_state(parent.model, parent.optimizer, mesh)
    optimizer = make_optimizer(config.optimizer, config.model)
    transform = growth_transform(growth, parent.model, config.model, optimizer, config.growth.resolved.optimizer_state)

    def grow(arrays: Any, key: jax.Array, matrices: Any) -> Any:
        params, opt_state, ema = transform(arrays, growth_key(key, stage.first_step), matrices)
        return params, opt_state, averaged(config.optimizer, params, ema)

    inputs = source.arrays, source.key, _abstract_matrices(growth, mesh)
    out = shardings_of(jax.eval_shape(grow, *inputs), config.model, mesh)
    with jax.set_mesh(mesh):
        return jax.jit(grow, out_shardings=out).lower(*inputs)


def lower_learning(stage: Stage, mesh: Mesh) -> tuple[Lowered, Lowered]:
    """The two functions of a growth that learns its maps, lowered; the first takes its key, the second the run's."""
    config, parent = stage.config, stage.parent.config
    begin, step = stage.growth.learner.programs(stage.growth)
    key = _replicated(mesh, stage.growth.learner.key)
    learner = jax.tree.map(partial(_replicated, mesh), jax.eval_shape(begin, key))
    source = abstract_state(parent.model, parent.optimizer, mesh)
    tokens = jax.ShapeDtypeStruct((config.batch, config.length + 1), "int32", sharding=by_rows(mesh))

    def learn(learner: Any, params: Any, tokens: jax.Array, key: jax.Array) -> Any:
        return step(learner, params, tokens, growth_key(key, stage.first_step))

    with jax.set_mesh(mesh):
        first = jax.jit(begin, out_shardings=replicated(mesh)).lower(key)
        return first, jax.jit(learn, out_shardings=replicated(mesh)).lower(learner, source.params, tokens, source.key)


def _abstract_matrices(growth: Growth, mesh: Mesh) -> Any:
    """Abstract, replicated LiGO matrices; None for operators without learned maps."""
    return jax.tree.map(partial(_replicated, mesh), growth.learner.matrices(growth)) if growth.learner else None


def _replicated(mesh: Mesh, leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh))


def bytes_needed(program: Any) -> int:
    """Bytes of a compiled program on each device: inputs, outputs that alias none of them, and temporaries."""
    memory = program.memory_analysis()
    parts = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
    return sum(parts) - memory.alias_size_in_bytes


def describe_memory(specs: Iterable[StepSpec], batch: int, length: int, mesh: Mesh) -> str:
    """The memory of the train step that needs the most, in words."""
    steps = (compile_steps(spec, batch, length, mesh)[0] for spec in specs)
    program = max(steps, key=bytes_needed)
    memory = program.memory_analysis()
    needed, given = _size(bytes_needed(program)), _size(memory.argument_size_in_bytes)
    return (
        f"a step needs {needed} on each device: {given} state and batch, {_size(memory.temp_size_in_bytes)} temporary"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def user_cache() -> Path:
    """The folder of compiled programs of all runs of a user on a machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "growlm" / "compiled"


@contextlib.contextmanager
def cached_on_disk(folder: Path | None = None) -> Iterator[None]:
    """Within it, compiled programs are cached in a folder; JAX_COMPILATION_CACHE_DIR names another one.

    JAX finds a program by its code, the compiler's version and flags, and the devices, a CPU's instructions among them.
    It locks the folder, and drops what was least recently used beyond CACHE_BYTES.

    folder: by default `user_cache`; nothing is cached where that cannot be written.
    """
    default = folder is None
    folder = (user_cache() if folder is None else folder).absolute()
    if jax.config.jax_compilation_cache_dir or (default and not _writable(folder)):
        yield
        return
    given = jax.config.jax_compilation_cache_max_size, jax.config.jax_persistent_cache_min_compile_time_secs
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": CACHE_BYTES if given[0] < 0 else given[0],
        "jax_persistent_cache_min_compile_time_secs": min(CACHED_SECONDS, given[1]),
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for entry in folder.glob("*-cache"):
        used = entry.with_name(f"{entry.name.removesuffix('-cache')}-atime")
        if not used.exists():  # its writer was killed, and JAX would write no other: it is the first to be dropped
            used.write_bytes(bytes(8))
    _set_cache(settings)
    try:
        yield
    finally:
        _set_cache(before)


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _set_cache(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX looks at the settings once
