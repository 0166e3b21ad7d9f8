"""How many processors there are for us."""

import os


def cores() -> int:
    """How many processors this process may use; a container's share can be less than all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
