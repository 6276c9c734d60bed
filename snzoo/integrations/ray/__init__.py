"""Classify photos on a Ray cluster, with Ray Data and Ray Serve (extra ``[ray]``).

    import ray
    from snzoo.integrations.ray import PhotoClassifier

    photos = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
    photos.map_batches(
        PhotoClassifier,
        fn_constructor_kwargs={"models": "resnet50v1_sn_8x32"},
        batch_format="pyarrow",
        batch_size=256,
        num_cpus=4,
        compute=ray.data.ActorPoolStrategy(size=8),
    ).write_parquet("s3://bucket/predictions")

``serve run snzoo.integrations.ray:app models=resnet50v1_sn_8x32`` starts the page and the HTTP API
of ``snzoo serve`` as a deployment of Ray Serve, see :func:`~snzoo.integrations.ray.serve.app`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from snzoo.environment import require_packages

if TYPE_CHECKING:
    from snzoo.integrations.ray.data import PhotoClassifier as PhotoClassifier
    from snzoo.integrations.ray.serve import app as app
    from snzoo.integrations.ray.serve import build_app as build_app

require_packages("ray", extra="ray", purpose="snzoo.integrations.ray")

__all__ = ["PhotoClassifier", "app", "build_app"]


if not TYPE_CHECKING:  # or no misspelled name would be an error for type checkers

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # Ray Data and Ray Serve take seconds to import; a process rarely needs both.
        module = "data" if name == "PhotoClassifier" else "serve"
        return getattr(import_module(f"{__name__}.{module}"), name)
