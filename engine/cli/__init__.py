"""The command ``posthorn``. Subcommands are imported when they are called, so each starts quickly."""

from __future__ import annotations

import sys

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnusedCliTokensError

from engine import __version__
from engine.cli.report import INTERRUPTED
from engine.errors import ConfigError

__all__ = ["main"]

app = App(name="posthorn", version=__version__, help="A high-throughput SMTP relay steered by Python hooks.")
_COMMANDS = ("run", "check", "explain", "log", "demo", "sink")
for _name in _COMMANDS:
    app.command(f"engine.cli.{_name}:{_name}", name=_name)


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exits with its status."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] not in _COMMANDS:
        for name in _COMMANDS:
            app[name]  # imports it: the list of commands shows the first line of each
    try:
        status = app(arguments, result_action="return_value", print_error=False, exit_on_error=False)
    except CycloptsError as error:
        command = words[0] if words and words[0] in _COMMANDS else ""
        name = f"posthorn {command}".rstrip()
        print(f"{name}: {_mistake(error)}; see {name} --help", file=sys.stderr)
        status = 2
    except ConfigError as error:
        print(f"posthorn: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:  # before the command itself had begun
        print("posthorn: interrupted", file=sys.stderr)
        status = INTERRUPTED
    sys.exit(status if isinstance(status, int) else 0)


def _mistake(error: CycloptsError) -> str:
    """What is wrong with the words of a command line."""
    if isinstance(error, UnusedCliTokensError):
        return f"too many arguments: {' '.join(error.unused_tokens or ())}"
    error.verbose = False
    return str(error).strip().rstrip(".")
