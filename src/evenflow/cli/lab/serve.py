"""``evenflow lab serve``: the playground."""

from __future__ import annotations

import click

from evenflow.cli.errors import Failure, plain_errors
from evenflow.cli.help import TaughtCommand


@click.command(
    "serve",
    cls=TaughtCommand,
    short_help="The playground: sliders, and the gradient that follows them.",
    examples=[
        ("evenflow lab serve", "Opens the page in your browser; Ctrl-C ends it."),
        ("evenflow lab serve --port 8123 --no-browser", "At a port of your choice, for a tunnel, say."),
    ],
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, show_default="a free one", help="Port to listen on."
)
@click.option("--browser/--no-browser", default=True, help="Whether to open the page.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def serve(*, port: int, browser: bool, debug: bool) -> None:
    """Serve a page on which depth, width, activation, init, norm, skips and time steps are sliders.

    The expected profile of the gradient follows the sliders; a button measures
    real nets over it. Only this machine can reach the page.
    """
    with plain_errors(debug=debug):
        from evenflow.cli.lab.playground import Playground

        try:
            server = Playground(port)
        except OSError as error:
            raise Failure(
                f"Port {port} cannot be listened on: {error.strerror}. "
                "Name another one with --port, or leave it out to take a free one."
            ) from error
        click.echo(f"The playground is at {server.address}  (Ctrl-C ends it)")
        if browser:
            click.launch(server.address)
        with server:
            server.serve_forever()
