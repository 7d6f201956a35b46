"""`bld serve --ray`: the same application on Ray Serve, a replica of it for each GPU or group of cores."""

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from ray import serve

from bld.apps.cluster import connected, gpus_for_each
from bld.apps.server.settings import Settings
from bld.errors import BldError, InvalidInput
from bld.options import LoadOptions

NAME = "default"  # of the application
BESIDE = 8  # requests of a replica beside those that edit and wait: health, models, metrics


@serve.ingress()
class Replica:
    """One process with the models and the application. Links to results are not given: another replica
    would be asked for them.
    """

    def __init__(self, names: Sequence[str], loading: LoadOptions, settings: Settings) -> None:
        from bld.apps.progress import quiet_libraries
        from bld.apps.server.app import create_app
        from bld.editor import Editor

        quiet_libraries()
        editors = {name: Editor.from_pretrained(name, options=loading) for name in names}
        self._application = create_app([editors], settings)

    def __serve_build_asgi_app__(self) -> Any:
        """The application behind its gate, as `bld serve` has it."""
        from bld.apps.server.app import served

        return served(self._application)


def bound(
    names: Sequence[str], loading: LoadOptions, settings: Settings, *, replicas: int, gpus: float
) -> Any:
    """The deployment with its arguments, as Ray Serve takes it. gpus: of each replica."""
    deployment = serve.deployment(Replica).options(
        num_replicas=replicas,
        max_ongoing_requests=settings.queue + 1 + BESIDE,
        graceful_shutdown_timeout_s=settings.timeout,
        ray_actor_options={"num_gpus": gpus, "num_cpus": 0 if gpus else 1},
    )
    return deployment.bind(list(names), loading, settings)


def application(args: Mapping[str, str]) -> Any:
    """What `import_path` of a Ray Serve configuration names. args: model, device, replicas, gpus, queue.

    Keys are taken from the environment variable BLD_API_KEYS, as by `bld serve`.
    """
    known = {"model", "device", "replicas", "gpus", "queue"}
    if set(args) - known:
        raise InvalidInput(f"args: expected {', '.join(sorted(known))}; got {', '.join(args)}")
    defaults = Settings()
    settings = Settings(
        queue=int(args.get("queue", defaults.queue)),
        api_keys=tuple(os.environ.get("BLD_API_KEYS", "").split()),
        links=False,
    )
    return bound(
        args.get("model", "mini").split(","),
        LoadOptions(device=args.get("device", "auto")),
        settings,
        replicas=int(args.get("replicas", 1)),
        gpus=float(args.get("gpus", 0)),
    )


def run(
    names: Sequence[str],
    loading: LoadOptions,
    settings: Settings,
    *,
    host: str,
    port: int,
    address: str,
    replicas: int,
    gpus: float | None,
) -> None:
    """Deploy, print the address, and serve until a signal comes.

    What was accepted is done first, unless another signal comes.
    """
    stop, at_once = threading.Event(), threading.Event()
    with connected(address):
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, lambda *_: (at_once if stop.is_set() else stop).set())
        serve.start(http_options={"host": host, "port": port})
        _deploy(bound(names, loading, settings, replicas=replicas, gpus=gpus_for_each(gpus)))
        typer.echo(f"http://{host}:{port}")
        stop.wait()
        # Replicas end once nothing is in work, and proxies answer until then; a shutdown ends proxies first.
        serve.delete(NAME, _blocking=False)
        while NAME in serve.status().applications and not at_once.wait(0.2):
            pass
        serve.shutdown()


def _deploy(deployment: Any) -> None:
    """Return once it answers. Raises BldError with what keeps its replicas from starting."""
    try:
        serve.run(deployment, name=NAME, route_prefix="/")
    except RuntimeError as error:
        (found,) = serve.status().applications[NAME].deployments.values()
        lines = [line for line in found.message.splitlines() if line.strip()]
        raise BldError(f"no replica starts: {lines[-1].strip() if lines else error}") from error
