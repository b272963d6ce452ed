"""An application of ours on its sockets: listener, front, application."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from litestar import Litestar

from aegisflux.runtime import access, http
from aegisflux.runtime.admission import Limits, fitting
from aegisflux.runtime.front import Front
from aegisflux.runtime.listener import Bind, Listener, raise_files

URGENT: Final = "urgent"  # the paths of an application's state that wait in no lane


def server(app: Litestar, binds: Sequence[Bind], limits: Limits | None = None) -> Listener:
    """A server in this event loop: `serve()` until `end()`."""
    bounds = fitting(limits or Limits(), raise_files())
    state = app.state
    front = Front(app, state.get(access.STATE), bounds, state.get(URGENT, ()), http.refuse)
    return Listener(http.accounted(front, http.table(app)), binds, bounds)


def single(app: Litestar, address: str, port: int, tls: tuple[Path, Path] | None = None) -> Listener:
    """The same on one address."""
    return server(app, [Bind(address=address, port=port, tls=tls)])
