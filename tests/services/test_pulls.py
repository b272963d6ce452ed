"""What a service has asked of the bus fits in what the server keeps for a connection: a service that is busy
for some seconds is not cut off for what it asked for itself.
"""

import ast
from collections import Counter
from pathlib import Path

import pytest

import aegisflux
from aegisflux.adapters.engines.nats import MAX_PENDING
from aegisflux.ports.bus import PULL_BYTES
from aegisflux.services.enrich.app import INVENTORIES_PULL
from aegisflux.services.ingest import app as ingest

SERVICES = Path(aegisflux.__file__).parent / "services"
PULLS = {
    "orchestrator": [PULL_BYTES, PULL_BYTES],  # acks, heartbeats
    "ingest": [ingest.PULL_BYTES],
    "enrich": [PULL_BYTES, INVENTORIES_PULL],
}


def consumers():
    """How many consumers each service has, by its source."""
    found = Counter()
    for path in SERVICES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                found[path.relative_to(SERVICES).parts[0]] += node.func.attr == "consume"
    return {name: count for name, count in found.items() if count}


def test_the_table_has_every_consumer():
    assert consumers() == {name: len(pulls) for name, pulls in PULLS.items()}


@pytest.mark.parametrize("name", PULLS)
def test_half_of_what_the_server_keeps_is_left_for_everything_else(name):
    assert sum(PULLS[name]) <= MAX_PENDING // 2
