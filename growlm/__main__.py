"""The command line: `growlm <command>`. Signals are taken before anything else is loaded."""

import gc
import os
import sys

from growlm.signals import take_signals

TYPE_CHECKING = False  # that of typing takes as long to load as all else here
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run a command, by default that of the command line.

    Returns 0 when it is done, 1 when it failed, 2 for bad input, 75 when it was asked to stop.
    """
    if arguments is None:
        take_signals()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from growlm.commands.dispatch import outcome

    code = outcome(sys.argv[1:] if arguments is None else arguments)
    if code and "jax" in sys.modules:
        import jax

        from growlm.training.peers import say_goodbye
        from growlm.training.processes import exit_process
        from growlm.training.programs import compiling

        say_goodbye()
        # One that failed must wait neither for its peers, which wait for it, nor for a program that nobody will run.
        if jax.process_count() > 1 or (arguments is None and compiling()):
            exit_process(code)
    if arguments is None:
        if peers := sys.modules.get("growlm.training.peers"):
            peers.leave_job()
        gc.freeze()  # or Python looks for garbage among all that was loaded before it exits: a quarter of JAX's import
    return code


if __name__ == "__main__":
    sys.exit(main())
