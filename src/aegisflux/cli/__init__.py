"""`aegisflux`: one entry point; a noun, then a verb.

Exit status: 0 fine, 1 findings, 2 error, 3 refused, 4 unavailable. Data goes to stdout, talk to stderr.
Parts are imported
when they are used, so that the agent stays small.
"""

import sys

from cyclopts import App

from aegisflux import __version__

app = App(
    name="aegisflux",
    help="Adaptive security of Linux hosts: signed, reversible allow-lists that the kernel enforces.",
    version=__version__,
)
for name in ("up", "orchestrator", "ingest", "enrich", "segmenter", "env"):
    app.command(f"aegisflux.cli.control:{name}", name=name)
for name in ("snapshot", "service", "token", "keys", "audit", "bus"):
    app.command(f"aegisflux.cli.nouns:{name}_app", name=name)
for name in ("flows", "inventory", "graph"):
    app.command(f"aegisflux.cli.facts:{name}_app", name=name)
app.command("aegisflux.cli.segment:app", name="segment")
app.command("aegisflux.cli.policy:app", name="policy")
app.command("aegisflux.cli.rollout:app", name="rollout")
app.command("aegisflux.cli.rollout:panic", name="panic")
app.command("aegisflux.cli.facts:events", name="events")
app.command("aegisflux.cli.nouns:host_app", name=("hosts", "host"))
app.command("aegisflux.cli.dead:app", name="dead")
app.command("aegisflux.agent.cli:app", name="agent")


def main() -> None:
    """Run the command line."""
    from cyclopts.exceptions import CycloptsError

    from aegisflux.domain.errors import Refused, Unavailable

    try:
        app(exit_on_error=False)
    except CycloptsError:
        sys.exit(2)
    except Refused as error:
        print(f"refused: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(3)
    except Unavailable as error:
        print(f"unavailable: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(4)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
