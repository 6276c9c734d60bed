"""The CPUs of a worker of Ray."""

from typing import Any

import ray


def count_cpus() -> int:
    """Return the number of CPUs that Ray reserves for this worker, at least 1."""
    context: Any = ray.get_runtime_context()
    return max(1, int(context.get_assigned_resources().get("CPU", 1)))
