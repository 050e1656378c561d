"""A GPU's memory, where PyTorch may be on the same card."""

import os

FRACTION = "XLA_CLIENT_MEM_FRACTION"
FORMER = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # JAX refuses to start where both are set


def take_memory_as_needed() -> None:
    """JAX takes memory as it needs it, nearly all of it at most. Must come before JAX finds its devices."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if FORMER not in os.environ:
        os.environ.setdefault(FRACTION, "0.9")
