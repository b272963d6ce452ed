"""One enrolled host that does what it likes on the bus, against two others: nothing of it reaches them.

Real NATS, PostgreSQL and orchestrator; the victim is an agent with the checks of the product. The attacker has
its own valid credentials and a client that asks for anything.
"""

import asyncio
import contextlib
import json
import time
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from tests.support.agents import AgentLab
from tests.support.control import WHO, body, running_plane
from tests.support.engines import eventually, opened
from tests.support.hostile_nats import RawClient

from aegisflux.domain.manifest import Answer
from aegisflux.wire import envelope, subjects
