"""The command ``posthorn``. Subcommands are imported when they are called, so help is quick."""

from __future__ import annotations

import sys

from cyclopts import App

from engine import __version__
from engine.errors import ConfigError

__all__ = ["main"]

app = App(name="posthorn", version=__version__, help="A high-throughput SMTP relay steered by Python hooks.")
app.command("engine.cli.run:run", name="run")
app.command("engine.cli.check:check", name="check")
app.command("engine.cli.demo:demo", name="demo")
app.command("engine.cli.sink:sink", name="sink")


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exits with its status."""
    try:
        status = app(arguments, result_action="return_value")
    except ConfigError as error:
        print(f"posthorn: {error}", file=sys.stderr)
        status = 2
    sys.exit(status if isinstance(status, int) else 0)
