"""`bld studio`: the command. Light, so that `bld --help` is: gradio and torch are imported when it runs."""

import functools
from typing import Annotated, Any

import typer

from bld.apps.flags import AUTO, LOCAL, MODEL, ModelName, with_edit_options
from bld.errors import InvalidInput, MissingExtra
from bld.options import EditOptions, LoadOptions

UPLOAD_MB = 64

app = typer.Typer(name="studio", invoke_without_command=True)


@app.callback()
@functools.partial(with_edit_options, groups=("Limits",))
def studio(
    *,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 lets other machines in")] = LOCAL,
    port: Annotated[
        int | None,
        typer.Option(help="port to listen on (default: the first free one from 7860)", min=1, max=65535),
    ] = None,
    auth: Annotated[
        list[str] | None,
        typer.Option(
            metavar="USER:PASSWORD",
            envvar="BLD_STUDIO_AUTH",
            show_envvar=True,
            help="who may come in; may be given several times (in the variable: with spaces between). Other "
            "users of the machine can read a command line, but not the variable",
        ),
    ] = None,
    max_upload_mb: Annotated[int, typer.Option(help="largest file to take, in MB", min=1)] = UPLOAD_MB,
    model: ModelName = MODEL,
    ranker: Annotated[
        str,
        typer.Option(help="CLIP model that puts the best candidate first, as for bld edit"),
    ] = AUTO,
    loading: LoadOptions,
    changes: dict[str, Any],
) -> None:
    """Edit in the browser: paint a mask on a photograph, type a prompt, pick among candidates."""
    users = [credentials(given) for given in auth or ()]
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"bld studio needs {error.name}: pip install 'blended-latent-diffusion[studio]'"
        ) from error
    from bld.apps.progress import quiet_libraries
    from bld.apps.studio.serving import Address, serve
    from bld.editor import Editor

    typer.echo(f"loading {model}")
    quiet_libraries()
    editor = Editor.from_pretrained(model, ranker=ranker, options=loading)
    if host != LOCAL and not users:
        typer.echo(f"note: whoever reaches {host} can use the studio; --auth USER:PASSWORD asks who it is")
    address = Address(host, port, max_upload_mb, tuple(users))
    with serve(
        editor, address, loading=loading, ranker=ranker, max_pixels=EditOptions(**changes).max_pixels
    ) as url:
        typer.echo(f"the studio is at {url}  (Ctrl+C ends it)")
        wait()


def credentials(given: str) -> tuple[str, str]:
    """User and password. Raises InvalidInput unless there are both."""
    user, colon, password = given.partition(":")
    if not (user and colon and password):
        raise InvalidInput("--auth: expected USER:PASSWORD")
    return user, password


def wait() -> None:
    """Until the program is interrupted, or asked to end, which is the same: both clean up."""
    import signal
    import threading

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Event().wait()
