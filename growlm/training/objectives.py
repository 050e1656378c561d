"""Objectives of stages, a row of a table each: which tokens count, and whether a teacher's distribution is a target.

The loss of a token is (1 - w) CE + w KL(teacher || model), times the token's weight. What is validated is the plain
cross-entropy of the next token: of all tokens, or of those that count where the others are not to be learned.

Shape suffixes: B batch, S tokens of an example (length + 1), T predicted tokens.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from growlm.data import Corpus
from growlm.data.chat import BYTES
from growlm.errors import InputError, check_name, check_range, must_be
from growlm.models import DecoderConfig

PARENT = "parent"
DECAYS = ("constant", "linear")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What a stage is trained on.

    Attributes:
      kind: a name in `OBJECTIVES`.
      teacher: "parent", the model at the end of the stage before, as it was before growth; or a checkpoint, as
        init_from takes it.
      weight: w, the share of the loss that is the teacher's, where the stage begins.
      weight_tokens: tokens of the stage after which w is 0, and the teacher neither runs nor is billed; 0: the stage's
        end.
      decay: of w until then, "constant" or "linear".
      temperature: by which the teacher's logits are divided; the model's are not.
      markers: tokens for system, user, assistant and the end of an answer, as `growlm prepare --chat` says them; by
        default those of the tokenizer bytes.
      teacher_fingerprint, teacher_model: hash of what the checkpoint holds, and its shape; filled in when a run begins,
        and kept in its config.json.
    """

    kind: str = "next_token"
    teacher: str | None = None
    weight: float = 0.5
    weight_tokens: int = 0
    decay: str = "constant"
    temperature: float = 1.0
    markers: tuple[int, ...] = BYTES
    teacher_fingerprint: str | None = None
    teacher_model: DecoderConfig | None = None

    def __post_init__(self):
        check_name("objective.kind", self.kind, OBJECTIVES)
        check_name("objective.decay", self.decay, DECAYS)
        check_range("objective.weight", self.weight, low=0, low_allowed=False, high=1)
        check_range("objective.weight_tokens", self.weight_tokens, low=0)
        check_range("objective.temperature", self.temperature, low=0, low_allowed=False)
        object.__setattr__(self, "markers", tuple(self.markers))  # a list in a config.json
        if len({*self.markers}) != len(BYTES) or not all(type(token) is int and token >= 0 for token in self.markers):
            raise must_be("objective.markers", f"{len(BYTES)} different tokens", self.markers)
        taken = {"kind", *self.row.settings}
        for field in dataclasses.fields(self):
            if field.name not in taken and (value := getattr(self, field.name)) != field.default:
                raise must_be(f"objective.{field.name}", f"unset with kind {self.kind!r}", value)
        if self.row.teacher and self.teacher is None:
            raise must_be("objective.teacher", f"{PARENT!r} or a checkpoint", None)
        if self.decay == "linear" and not self.weight_tokens:
            raise must_be("objective.weight_tokens", "> 0 where the weight decays", 0)

    @property
    def row(self) -> "Objective":
        """What the name stands for."""
        return OBJECTIVES[self.kind]

    @property
    def place(self) -> str | None:
        """Where the teacher lies, if it is no stage of the run."""
        return None if self.teacher == PARENT else self.teacher

    def teacher_weight(self, tokens: int) -> float:
        """w of the update that begins where the stage has seen `tokens`; 0 without a teacher."""
        if not self.row.teacher or (self.weight_tokens and tokens >= self.weight_tokens):
            return 0.0
        return self.weight * (1 - tokens / self.weight_tokens) if self.decay == "linear" else self.weight

    def taught_steps(self, steps: int, batch_tokens: int) -> int:
        """How many of a stage's first `steps` updates have a teacher."""
        if not self.row.teacher:
            return 0
        return min(steps, -(-self.weight_tokens // batch_tokens)) if self.weight_tokens else steps


@dataclasses.dataclass(frozen=True)
class Objective:
    """One row of the table, of which the train step knows no other thing.

    Attributes:
      weights: (config, int[B, S] tokens) -> [B, T] >= 0, what the loss of each predicted token counts for; the loss is
        the weighted mean over the batch. None: all count the same.
      teacher: whether a teacher's distribution is a part of the target. It costs its forward pass.
      validates: whether the loss that is validated is of the tokens that count, too.
      needs: (config, corpus) -> None; raises InputError where the text is not what the objective is for.
      settings: what it reads of `ObjectiveConfig`; the rest must be at its default.
    """

    weights: Callable[[ObjectiveConfig, jax.Array], jax.Array] | None = None
    teacher: bool = False
    validates: bool = False
    needs: Callable[[ObjectiveConfig, Corpus], None] | None = None
    settings: tuple[str, ...] = ()

    def token_weights(self, config: ObjectiveConfig, tokens_BS: jax.Array) -> jax.Array | None:
        """float32[B, T] weights with a mean of 1 over the whole batch, or all 0; None where all count the same."""
        if self.weights is None:
            return None
        weights_BT = self.weights(config, tokens_BS).astype(jnp.float32)
        mean = weights_BT.mean()
        return jnp.where(mean > 0, weights_BT / jnp.where(mean > 0, mean, 1), 0)


def answers(config: ObjectiveConfig, tokens_BS: jax.Array) -> jax.Array:
    """Which predicted tokens are of an answer, or end one: bool[B, T], a function of the tokens of a window alone.

    Those after the assistant's marker, up to and with the end; before the first marker of a window, if that is an end.
    """
    *_, assistant, end = config.markers
    place_S = jnp.arange(tokens_BS.shape[1])
    marks_BS = jnp.isin(tokens_BS, jnp.asarray(config.markers))
    last_BS = jax.lax.cummax(jnp.where(marks_BS, place_S, -1), axis=1)  # the place of the last marker so far
    marker_BS = jnp.take_along_axis(tokens_BS, jnp.maximum(last_BS, 0), axis=1)
    first_B1 = jnp.take_along_axis(tokens_BS, jnp.argmax(marks_BS, axis=1)[:, None], axis=1)
    inside_BS = jnp.where(last_BS < 0, first_B1 == end, marker_BS == assistant)
    return inside_BS[:, :-1]


def _check_answers(config: ObjectiveConfig, corpus: Corpus) -> None:
    if corpus.markers is None:
        raise InputError(
            f"objective.kind 'answers' needs conversations, as growlm prepare --chat has them: {corpus.name}"
        )
    if corpus.markers != config.markers:
        raise must_be("objective.markers", f"those of {corpus.name}, {corpus.markers}", config.markers)


_OF_TEACHER = (
    "teacher",
    "weight",
    "weight_tokens",
    "decay",
    "temperature",
    "teacher_fingerprint",
    "teacher_model",
)

# One more is one row; it may stand in your own experiment file.
OBJECTIVES: dict[str, Objective] = {
    "next_token": Objective(),
    "distill": Objective(teacher=True, settings=_OF_TEACHER),
    "answers": Objective(weights=answers, validates=True, needs=_check_answers, settings=("markers",)),
}
