"""`bld serve`: load the models, listen, and leave nobody without an answer."""

from typing import Annotated, Any

import typer

from bld.apps.cluster import Address
from bld.apps.flags import LOCAL, MODEL, with_edit_options
from bld.apps.server.settings import Settings
from bld.errors import InvalidInput, MissingExtra
from bld.options import LoadOptions

app = typer.Typer()
DEFAULTS = Settings()
MAX_BODY_MB = DEFAULTS.max_body // 2**20


def _serve(
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help=f"a model to serve, the first is the default one (default {MODEL})"
        ),
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="NAME=MODEL: another name for a model, such as gpt-image-1=mini")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 is every one")] = LOCAL,
    port: Annotated[int, typer.Option(help="0 takes a free one", min=0, max=65535)] = 8000,
    queue: Annotated[int, typer.Option(help="edits that may wait", min=0)] = DEFAULTS.queue,
    timeout: Annotated[
        float, typer.Option(help="seconds for an edit, waiting included", min=1)
    ] = DEFAULTS.timeout,
    max_body_mb: Annotated[int, typer.Option(help="largest request, in MB", min=1)] = DEFAULTS.max_body
    // 2**20,
    max_pixels: Annotated[int, typer.Option(help="largest picture, in pixels", min=1)] = DEFAULTS.max_pixels,
    url_lifetime: Annotated[
        float, typer.Option(help="seconds that a result's URL is good for", min=1)
    ] = DEFAULTS.url_lifetime,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="BLD_API_KEYS",
            help="let in only who sends it; may be given several times. The environment variable "
            "BLD_API_KEYS, keys separated by spaces, keeps them off the process list",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="web page whose scripts may call, such as https://example.org")
    ] = None,
    ray: Address = None,
    replicas: Annotated[int, typer.Option(help="on Ray: how many processes have the models", min=1)] = 1,
    gpus_per_replica: Annotated[
        float | None,
        typer.Option(help="on Ray: GPUs of each, such as 0.5 (default 1 if the cluster has any)", min=0),
    ] = None,
    loading: LoadOptions,
    changes: dict[str, Any],
) -> None:
    """Answer POST /v1/images/edits as the OpenAI images API does. --device cuda:0,cuda:1 serves on both."""
    settings = Settings(
        queue=queue,
        timeout=timeout,
        max_body=max_body_mb * 2**20,
        max_pixels=max_pixels,
        url_lifetime=url_lifetime,
        api_keys=tuple(api_key or ()),
        cors_origins=tuple(cors_origin or ()),
        aliases=dict(map(_alias, alias or ())),
        links=ray is None,
    )
    names = model or [MODEL]
    for meant in settings.aliases.values():
        if meant not in names:
            raise InvalidInput(f"--alias to {meant}: it is not served; there is {', '.join(names)}")
    if ray is not None and port == 0:
        raise InvalidInput("--port 0 with --ray: Ray Serve does not say which one it took; name one")
    try:
        if ray is not None:
            from bld.apps.server import ray as cluster

            return cluster.run(
                names, loading, settings, host=host, port=port, address=ray, replicas=replicas,
                gpus=gpus_per_replica,
            )  # fmt: skip
        from bld.apps.server.run import run
    except ImportError as error:
        extra = "server" if ray is None else "server,ray"
        raise MissingExtra(
            f"bld serve needs {error.name}: pip install 'blended-latent-diffusion[{extra}]'"
        ) from error
    run(names, loading, settings, host=host, port=port)


def _alias(text: str) -> tuple[str, str]:
    name, equals, model = text.partition("=")
    if not name or not equals or not model:
        raise InvalidInput(f"--alias {text}: expected NAME=MODEL")
    return name, model


app.command(name="serve")(with_edit_options(_serve, groups=()))
