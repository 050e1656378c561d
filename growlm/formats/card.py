"""The model card that lies beside a grown checkpoint."""

import shlex
from typing import Any

CARD = "README.md"


def model_card(source: str, family: str, report: dict[str, Any], shapes: str, verified: str) -> str:
    """Markdown: where a grown model comes from, how it was grown, what that claims and what was verified.

    Args:
      source: the name of the folder that was grown.
      family: its model_type.
      report: of the growth, as `growlm.growth.describe` gives it, with what was asked for.
      shapes: the two shapes and the claims, as a table.
      verified: what was verified, in a sentence.
    """
    before, after = (f"{report[f'parameters_{when}']:,}" for when in ("before", "after"))
    options = shlex.join(f"{name}={value}" for name, value in report["options"].items()) or "none"
    asked = report["asked"] if report["asked"] == report["operator"] else f"{report['asked']} ({report['operator']})"
    kept = "keeps" if report["preserves_function"] else "does not keep"
    return f"""---
library_name: transformers
tags:
- growlm
- model-growth
---

# {source}, grown from {before} to {after} parameters

These are the weights of `{source}` ({family}), grown by growlm and not trained since.

- operator: {asked}; options: {options}
- layers, by the source's layer that each is a copy of (-1: fresh): {" ".join(map(str, report["order"]))}
- layers that add nothing yet: {" ".join(map(str, report["zero_residual_layers"])) or "none"}
- function: the growth {kept} the source's: {report["reason"]}
- verified: {verified}

```
{shapes}
```

`growth.json` says of every coordinate of every axis which one of the source it comes from. The licence and the terms of
the source hold for this model too.
"""
