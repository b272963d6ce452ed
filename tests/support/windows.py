"""Windows of recorded flows, told as who called whom."""

from collections.abc import Iterable, Sequence

import numpy as np

from aegisflux.domain.segment.flows import HOURS, Flows

TCP = 6
Call = tuple[Sequence[int], Sequence[int], Sequence[int], Iterable[int]]


def window(calls: Iterable[Call]) -> Flows:
    """(clients, servers, ports, days): each client called each server on each port, once on each day."""
    rows = [
        (day * HOURS, client, server, TCP, port, 1, -1)
        for clients, servers, ports, days in calls
        for client in clients
        for server in servers
        for port in ports
        for day in days
        if client != server
    ]
    columns = zip(*rows, strict=True) if rows else [()] * 7
    return Flows(*(np.array(column, np.int32) for column in columns))
