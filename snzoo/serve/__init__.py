"""Serve classifiers over HTTP (extra ``[serve]``)."""

from snzoo.environment import require_packages

require_packages("fastapi", "prometheus_client", extra="serve", purpose="snzoo.serve")

from snzoo.serve.app import create_app  # noqa: E402
from snzoo.serve.batching import LocalEngine  # noqa: E402
from snzoo.serve.engine import (  # noqa: E402
    Engine,
    ServedModel,
    describe_classifier,
    load_classifiers,
    to_batch,
)
from snzoo.serve.limits import Limits, QueueFullError  # noqa: E402
from snzoo.serve.metrics import Metrics  # noqa: E402
from snzoo.serve.photos import Decoder  # noqa: E402

__all__ = [
    "Decoder",
    "Engine",
    "Limits",
    "LocalEngine",
    "Metrics",
    "QueueFullError",
    "ServedModel",
    "create_app",
    "describe_classifier",
    "load_classifiers",
    "to_batch",
]
