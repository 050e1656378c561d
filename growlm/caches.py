"""Where growlm keeps for a user on a machine what can be made again at any time."""

import os
from pathlib import Path


def user_cache(kind: str) -> Path:
    """The folder of a kind of what is kept, under XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "growlm" / kind
