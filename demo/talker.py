"""A program of a service: real sockets, told what to do by lines of JSON on standard input.

    try     proto, address, port      one attempt: {"word": "connected", "ms": 0.4, "at": ...}
    until   ..., words, within        tries until one of the words is seen
    load    name, ..., every          goes on trying in the background
    counts                            words seen by the background, by name
    hold    address, port             one live connection
    say                               whether it still carries an echo

Times are CLOCK_MONOTONIC, which all processes of the machine share. Only the standard library is used.
"""

import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.support import probes

ATTEMPTS = {"tcp": probes.tcp, "udp": probes.udp_sendto, "udp-connected": probes.udp_connected}
Json = dict[str, Any]


def attempt(order: Json) -> Json:
    """One attempt; `at` is when its outcome was decided (a silent one: when it began)."""
    begun = time.monotonic()
    word = ATTEMPTS[order["proto"]](order["address"], order["port"], order.get("wait", 0.25))
    ended = time.monotonic()
    return {"word": word, "at": begun if word == "silent" else ended, "ms": (ended - begun) * 1000}


def until(order: Json) -> Json:
    """Attempts without a pause until one ends in a wanted word, or the time is over."""
    limit, tries = time.monotonic() + order["within"], 0
    while True:
        found, tries = attempt(order), tries + 1
        if found["word"] in order["words"] or time.monotonic() > limit:
            return {**found, "tries": tries}
        time.sleep(0.001)


class Talker:
    """The state between two orders."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.held: socket.socket | None = None

    def obey(self, order: Json) -> Json:
        """Do one thing and say how it went."""
        acts: dict[str, Callable[[Json], Json]] = {
            "try": attempt,
            "until": until,
            "load": self.load,
            "hold": self.hold,
            "say": self.say,
            "counts": self.counted,
        }
        return acts[order["do"]](order)

    def counted(self, _order: Json) -> Json:
        return {name: dict(words) for name, words in self.counts.items()}

    def load(self, order: Json) -> Json:
        seen = self.counts.setdefault(order["name"], Counter())

        def go_on() -> None:
            while True:
                seen[attempt(order)["word"]] += 1
                time.sleep(order["every"])

        threading.Thread(target=go_on, daemon=True).start()
        return {}

    def hold(self, order: Json) -> Json:
        self.held = socket.create_connection((order["address"], order["port"]), 2)
        return self.say(order)

    def say(self, _order: Json) -> Json:
        """Whether the live connection still carries a byte and its echo."""
        assert self.held is not None
        self.held.settimeout(0.3)
        try:
            self.held.send(b"?")
            return {"echo": bool(self.held.recv(16))}
        except OSError:
            return {"echo": False}


def main() -> None:
    talker = Talker()
    for line in sys.stdin:
        print(json.dumps(talker.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
