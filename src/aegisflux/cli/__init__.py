"""`aegisflux`: one entry point; a noun, then a verb.

Exit status: 0 fine, 1 findings (never a failure), 2 error, 3 refused, 4 unavailable. Data goes to stdout,
talk to stderr. Parts are imported when they are used, so that the agent stays small.
"""

import os
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, TextIO

from cyclopts import App, Parameter

from aegisflux import __version__
from aegisflux.cli.arguments import converted

if TYPE_CHECKING:
    from cyclopts.exceptions import CycloptsError

app = App(
    name="aegisflux",
    help="Adaptive security of Linux hosts: signed, reversible allow-lists that the kernel enforces.",
    version=__version__,
    default_parameter=Parameter(converter=converted),
)
for name in ("up", "orchestrator", "ingest", "enrich", "segmenter", "env"):
    app.command(f"aegisflux.cli.control:{name}", name=name)
for name in ("snapshot", "keys", "audit", "bus"):
    app.command(f"aegisflux.cli.nouns:{name}_app", name=name)
for name in ("flows", "inventory", "graph"):
    app.command(f"aegisflux.cli.facts:{name}_app", name=name)
app.command("aegisflux.cli.segment:app", name="segment")
app.command("aegisflux.cli.policy:app", name="policy")
app.command("aegisflux.cli.rollout:app", name="rollout")
app.command("aegisflux.cli.rollout:panic", name="panic")
app.command("aegisflux.cli.facts:events", name="events")
app.command("aegisflux.cli.hosts:host_app", name=("hosts", "host"))
app.command("aegisflux.cli.tokens:token_app", name="token")
app.command("aegisflux.cli.services:service_app", name="service")
app.command("aegisflux.cli.dead:app", name="dead")
app.command("aegisflux.agent.cli:app", name="agent")


def main(*words: str) -> None:
    """Run the command line: these words, or those of the process."""
    from cyclopts.exceptions import CycloptsError

    from aegisflux.domain.errors import Misused, Refused, Unavailable
    from aegisflux.runtime import terminal

    terminal.guard()
    try:
        _run(words, sys.stdout)
    except CycloptsError:
        sys.exit(2)
    except Misused as error:
        _fail(2, f"error: {error}")
    except Refused as error:
        _fail(3, f"refused: {error}")
    except Unavailable as error:
        _fail(4, f"unavailable: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _let_go(sys.stdout.fileno())
        sys.exit(0)
    except UnicodeEncodeError as error:  # an argument or a variable holds bytes that are no text
        _fail(2, f"error: expected text that is UTF-8, got {str(error.object)[:200]}")
    except OSError as error:
        _fail(2, f"error: {error}")
    except Exception as error:  # noqa: BLE001 - a mistake of ours: 1, the interpreter's status, says "findings"
        traceback.print_exc()
        _fail(2, f"error: {type(error).__name__}: {error}; this is a mistake in AegisFlux")


def _run(words: tuple[str, ...], output: TextIO) -> None:
    """Run the command, and write what it printed: a pipe that nobody reads is found out here, not when the
    interpreter ends."""
    try:
        app(*([list(words)] if words else ()), exit_on_error=False, error_formatter=_misused)
    except SystemExit as ended:  # the library that prints help ends with 1
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        raise
    finally:
        output.flush()


def _let_go(output: int) -> None:
    """Whoever read standard output (`| head`) has seen enough: what is still to be written goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)


def _fail(status: int, text: str) -> NoReturn:
    """End with a message, whoever wrote it."""
    from aegisflux.domain.text import paragraph

    with suppress(OSError):
        print(paragraph(text), file=sys.stderr, flush=True)  # noqa: T201
    sys.exit(status)


def _misused(error: "CycloptsError") -> object:
    """A wrong command line in a box; arguments are quoted in it, and they may hold anything."""
    from cyclopts.panel import CycloptsPanel

    from aegisflux.domain.text import printable

    return CycloptsPanel(printable(f"{_argument(error)}{error}"))


def _argument(error: "CycloptsError") -> str:
    """The name of an argument that is given by its place: the library names options alone."""
    token, argument = getattr(error, "token", None), error.argument
    if token is None or token.keyword is not None or argument is None or getattr(error, "msg", None) is None:
        return ""
    return f"{argument.name.lstrip('-').upper().replace('-', '_')}: "
