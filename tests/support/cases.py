"""The conformance cases of `../shared/data/verdicts/cases.jsonl` as domain values."""

import json
from pathlib import Path
from typing import Any

from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.net import ICMP, ICMPV6, PROTOCOLS, parse_address
from aegisflux.domain.snapshot import MapSnapshot, from_builtins

CASES = Path(__file__).resolve().parents[3] / "shared/data/verdicts/cases.jsonl"
Case = tuple[MapSnapshot, Flow, Host, tuple[str, str]]


def load_cases() -> list[Case]:
    return [_case(json.loads(line)) for line in CASES.read_text().splitlines()]


def _case(raw: dict[str, Any]) -> Case:
    peer = parse_address(raw["flow"]["peer"])
    proto = PROTOCOLS[raw["flow"]["proto"]]
    if proto == ICMP and peer.family == 6:
        proto = ICMPV6
    flow = Flow(
        raw["flow"]["direction"],
        proto,
        peer,
        raw["flow"]["port"],
        icmp_type=128 if proto == ICMPV6 else 8 if proto == ICMP else None,
    )
    host = Host(addresses=frozenset(map(parse_address, raw["host"]["addresses"])))
    return from_builtins(raw["snapshot"]), flow, host, (raw["expect"]["action"], raw["expect"]["reason"])
