"""What a process that is there to train sets up for itself."""

from growlm.training.checkpoint import quiet_writers
from growlm.training.host_memory import keep_freed_memory
from growlm.training.peers import join_job


def own_process() -> None:
    """Set up this process for training, as `growlm train` and `growlm sweep` do; must come before anything else of JAX.

    It joins the other processes of its job and watches them, keeps the memory that a step on CPUs frees for the next
    one (up to a third of a step's time; the process never shrinks again), and prints no tracebacks of other libraries'
    writers. A process that is not for training alone, such as a notebook's, does without.

    Raises InputError, as `join_job` does.
    """
    join_job()
    keep_freed_memory()
    quiet_writers()
