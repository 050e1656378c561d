"""The target of a growth where its config leaves numbers open that it derives from sizes."""

import dataclasses
from typing import Any

import jax

from growlm.growth.claims import claim
from growlm.growth.operators import plan_growth
from growlm.growth.plan import Growth
from growlm.models.architecture import DecoderConfig


def plan_target(
    operator: str, source: DecoderConfig, target: DecoderConfig, key: jax.Array | None = None, /, **options: Any
) -> tuple[DecoderConfig, Growth]:
    """The target and the growth into it. Numbers that are derived from sizes stay the source's if that is exact.

    Raises InputError as `plan_growth`.
    """
    shapes = [target]
    if target.architecture is source.architecture:
        fields = [(field.name, getattr(target, field.name)) for field in dataclasses.fields(target)]
        shapes.append(source.grown(**{name: value for name, value in fields if value != getattr(source, name)}))
    plans = [(shape, plan_growth(operator, source, shape, key, **options)) for shape in dict.fromkeys(shapes)]
    return next((plan for plan in plans if claim(plan[1], source, plan[0])[0]), plans[0])
