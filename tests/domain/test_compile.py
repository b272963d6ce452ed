"""The compiled tables mean what the snapshot means: `tables.find` against `verdict.judge`."""

import random

import pytest
from hypothesis import given, settings

from aegisflux.domain.compile import compile_tables
from aegisflux.domain.errors import OverLimit
from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.net import TCP, Address, masked, parse_cidr
from aegisflux.domain.snapshot import Entry, Ruleset
from aegisflux.domain.tables import EGRESS, INGRESS, find
from aegisflux.domain.verdict import judge
from aegisflux.domain.verdict_of_tables import judge_tables
from tests.support.snapshots import random_flow, random_ruleset, seeds

HOST = Host(addresses=frozenset({Address(4, 0x0A090909)}))


def rules_with(edges: tuple[Entry, ...], **changes: object) -> Ruleset:
    base = {
        "service_id": 1,
        "version": 1,
        "edges": edges,
        "peers": (),
        "ingress": None,
        "deny": (),
        "mode": "enforce",
        "on_expiry": "open",
        "established": "cut",
    }
    return Ruleset(**{**base, **changes})  # type: ignore[arg-type]


@settings(max_examples=400, deadline=None)
@given(seeds)
def test_the_tables_decide_as_the_oracle_with_the_same_reason_and_rule(seed: int) -> None:
    rng = random.Random(seed)
    rules = random_ruleset(rng)
    tables = compile_tables(rules)
    for _ in range(25):
        flow = random_flow(rng, rules)
        assert judge_tables(tables, rules, flow, HOST) == judge(rules, flow, HOST), (rules, flow)


def test_equal_lists_share_one_class() -> None:
    edges = tuple(Entry(masked(4, i * 7919 * 211 % 2**32, 32), "tcp", 443) for i in range(1, 2000))
    tables = compile_tables(rules_with(edges))
    assert len(tables.classes) == 16
    assert len(tables.items) == 4


def test_deep_nesting_is_refused_by_the_limits_name() -> None:
    edges = tuple(Entry(masked(4, 0x0A000001, n), "tcp", n) for n in range(8, 25))
    with pytest.raises(OverLimit, match="levels: at most 16, got 17"):
        compile_tables(rules_with(edges))


def test_too_many_classes_are_refused_by_the_limits_name() -> None:
    edges = tuple(Entry(masked(4, i << 8, 32), "tcp", 1 + i % 65535) for i in range(65_540))
    edges += tuple(Entry(masked(4, i << 8, 31), "tcp", 7) for i in range(65_540))
    with pytest.raises(OverLimit, match="classes: at most 65535"):
        compile_tables(rules_with(edges))


@pytest.mark.parametrize(
    "text", ["0.0.0.0/0", "255.255.255.255/32", "::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"]
)
def test_the_ends_of_the_space_are_inside(text: str) -> None:
    cidr = parse_cidr(text)
    tables = compile_tables(rules_with((Entry(cidr, "tcp", 443),)))
    for value in (cidr.value, cidr.last):
        assert find(tables, EGRESS, TCP, Address(cidr.family, value), 443) is not None
        assert find(tables, INGRESS, TCP, Address(cidr.family, value), 443) is None


def test_the_same_rules_give_the_same_digest_in_any_order() -> None:
    rng = random.Random(7)
    edges = [Entry(masked(4, rng.getrandbits(32), rng.choice((8, 24, 32))), "tcp", 443) for _ in range(500)]
    one = compile_tables(rules_with(tuple(edges)))
    rng.shuffle(edges)
    assert compile_tables(rules_with(tuple(edges))).digest() == one.digest()


def test_a_live_flow_is_kept_only_without_a_deny() -> None:
    rules = rules_with((), established="keep", deny=(Entry(parse_cidr("10.0.0.0/8"), "any", 0, "both"),))
    lost = Flow("egress", TCP, Address(4, 0xC0000201), 443, live=True)
    assert judge(rules, lost, HOST).kept
    assert judge(rules, Flow("egress", TCP, Address(4, 0x0A000001), 443, live=True), HOST).reason == "deny"
