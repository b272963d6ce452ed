"""An attacker who holds the bus: reads a host's desired state and puts other bytes in its place.

    python -m demo.forge SECRETS URL      then lines of JSON: {"do": "capture", "host": ...}

It has the credentials of the control plane for NATS, and no key that signs.
"""

import asyncio
import base64
import json
import os
import sys
import time
from pathlib import Path

from aegisflux.adapters.bus.accounts import NatsAccounts
from aegisflux.adapters.bus.nats import NatsBus, NatsOptions
from aegisflux.adapters.secrets.file import FileSecrets
from aegisflux.adapters.secrets.pki import CA_CERT
from aegisflux.wire import subjects


async def capture(bus: NatsBus, host: str) -> str:
    """The desired state of a host as it lies on the bus, base64."""
    message = await bus.last(subjects.desired(host))
    return base64.b64encode(message.payload).decode() if message else ""


async def publish(bus: NatsBus, host: str, payload: str) -> str:
    """Put bytes in the place of a host's desired state."""
    data = base64.b64decode(payload)
    await bus.publish(subjects.desired(host), data, msg_id=f"forged-{os.urandom(8).hex()}")
    return "published"


async def main() -> None:
    secrets = FileSecrets(Path(sys.argv[1]))
    credentials = NatsAccounts(secrets, int(time.time())).control_creds(int(time.time()))
    authority = secrets.path(CA_CERT).read_text()
    options = NatsOptions(
        urls=[sys.argv[2]],
        credentials=credentials,
        ca_pem=authority,
        trouble=lambda text: print(text, file=sys.stderr),
    )
    bus = NatsBus(options)
    bus.open()
    await bus.ready()
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        act = (
            capture(bus, order["host"])
            if order["do"] == "capture"
            else publish(bus, order["host"], order["payload"])
        )
        print(json.dumps({"answer": await act}), flush=True)
    await bus.close()


if __name__ == "__main__":
    asyncio.run(main())
