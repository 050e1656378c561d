"""SALT's choice of examples: a small model scores windows of text, and the challenging ones that it can learn are kept.

The rule is that of SALT-DS (arXiv 2410.18779) as we remember it, without its text at hand: the score of a window is the
median over its tokens of their losses under the small model, where a loss counts only if the true token is among the
model's top k, and is 0 otherwise. The windows with the highest scores are kept. k and the share kept are ours.

Shape suffixes: B batch, S tokens of a window (length + 1), T predicted tokens, N = B x T, D embed, V vocab.
"""

import dataclasses
import math
from fractions import Fraction

import jax
import jax.numpy as jnp

from growlm.errors import check_range
from growlm.models import DecoderConfig, Params, hidden_states
from growlm.models.loss import token_losses
from growlm.training.objectives import PARENT


@dataclasses.dataclass(frozen=True)
class ChoiceConfig:
    """By which model, and of how many, the windows are chosen that a stage is trained on.

    Attributes:
      scorer: "parent", the model at the end of the stage before, as it was before growth; or a checkpoint, as init_from
        takes it.
      keep: the share of the scored windows that is trained on, between 0 and 1.
      top_k: among how many first choices of the scorer a token must be for its loss to count.
      tokens: that the chosen windows have; where the stage has more, they come again. 0: the stage's.
      scorer_fingerprint, scorer_model: as those of a teacher, see `ObjectiveConfig`.
    """

    scorer: str
    keep: float
    top_k: int = 10
    tokens: int = 0
    scorer_fingerprint: str | None = None
    scorer_model: DecoderConfig | None = None

    def __post_init__(self):
        check_range("choice.keep", self.keep, low=0, low_allowed=False, high=1, high_allowed=False)
        check_range("choice.top_k", self.top_k, low=1)
        check_range("choice.tokens", self.tokens, low=0)

    @property
    def place(self) -> str | None:
        """Where the scorer lies, if it is no stage of the run."""
        return None if self.scorer == PARENT else self.scorer

    def scored(self, chosen: int) -> int:
        """Of how many windows so many are chosen."""
        # What is written counts: of 0.1 the tenth, not the float next to it.
        return math.ceil(chosen / Fraction(str(self.keep)))


def window_scores(
    model: DecoderConfig, top_k: int, dtype: str, document_end: int | None, params: Params, tokens_BS: jax.Array
) -> jax.Array:
    """The scores of windows, float32[B] in nats, given int32[B, S] tokens; the last two alone are no constants."""
    target_BT = tokens_BS[:, 1:]
    x_ND, head_DV = hidden_states(model, params, tokens_BS[:, :-1], dtype=jnp.dtype(dtype), document_end=document_end)
    loss_N, rank_N = token_losses(x_ND, head_DV, target_BT.reshape(-1), model.architecture.logit_cap(model))
    return jnp.median(jnp.where(rank_N < top_k, loss_N, 0).reshape(target_BT.shape), axis=1)
