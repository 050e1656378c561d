"""The state of training: one pytree that is checkpointed, restored and grown as a whole."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from growlm.models import Params


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "opt_state", "step", "tokens", "examples", "key", "provenance", "ema"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What training carries from step to step, over all stages of a run.

    The counters are host integers: 300 billion tokens do not fit the 32 bits that JAX has by default. `examples` is
    the position in the data, `key` the run's key, from which growth draws fresh values. `provenance` says for every
    axis where the last growth took its coordinates from (`growlm.growth.plan`), `ema` is an averaged copy of the
    parameters, where the stage keeps one.
    """

    params: Params
    opt_state: Any
    step: np.int64
    tokens: np.int64
    examples: np.int64
    key: jax.Array
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    ema: Params | None = None

    @property
    def arrays(self) -> tuple[Params, Any, Params | None]:
        """What a step changes: params, opt_state and ema."""
        return self.params, self.opt_state, self.ema

    def advanced(self, arrays: tuple[Params, Any, Params | None], batch: int, length: int) -> "TrainState":
        """The state one step later, with its params, opt_state and ema."""
        params, opt_state, ema = arrays
        return dataclasses.replace(
            self,
            params=params,
            opt_state=opt_state,
            ema=ema,
            step=self.step + np.int64(1),
            tokens=self.tokens + np.int64(batch * length),
            examples=self.examples + np.int64(batch),
        )
