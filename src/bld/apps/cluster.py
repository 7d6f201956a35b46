"""A Ray cluster, as the commands that run on one find it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from bld.errors import InvalidInput, MissingExtra

LOCAL = "local"
Address = Annotated[
    str | None,
    typer.Option(
        "--ray", help="run on Ray: local, auto (the cluster this machine is in), or HOST:PORT of a head"
    ),
]


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at an address, or to one that is started here and ends with the block.

    Raises MissingExtra without Ray, and InvalidInput where there is no cluster.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent to anyone
    try:
        import ray
    except ImportError as error:
        raise MissingExtra(
            f"--ray needs {error.name}: pip install 'blended-latent-diffusion[ray]'"
        ) from error
    dashboard = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, address=address, **dashboard)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InvalidInput(
            f"--ray {address}: no Ray cluster there ({reason}); start one, or take --ray local"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def gpus_for_each(asked: float | None) -> float:
    """The GPUs of an actor: as asked, else 1 if the cluster has any."""
    import ray

    return float("GPU" in ray.cluster_resources()) if asked is None else asked
