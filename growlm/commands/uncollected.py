"""Work that leaves no garbage, such as loading modules, without the looks for it that Python takes again and again."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Within it, garbage that holds itself alive stays until later."""
    looked = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looked:
            gc.enable()
