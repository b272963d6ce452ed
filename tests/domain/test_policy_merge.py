"""A proposal joins a file without changing what the file means, and drops nothing without a word."""

# ruff: noqa: E501

import pytest

from aegisflux.domain.policy import Group, Policy, Rule
from aegisflux.domain.policy_merge import additions
from aegisflux.wire.policyfile import read
from aegisflux.wire.policymerge import merged


def rule(from_, to, *ports, name=None, action="allow"):
    return Rule(
        name=f"{from_}-to-{to}" if name is None else name, from_=from_, to=to, ports=ports, action=action
    )


def hosts(*names):
    return Group(hosts=names)


OLD = hosts("h1", "h2", "h3")
NEW = hosts("h2", "h3", "h9")
DB = rule("role-1", "db", "tcp/5432")
FILE = """policy: 1
groups:
  role-1: {hosts: [h1, h2, h3]}
rules:
  - {name: role-1-to-db, from: role-1, to: db, ports: [tcp/5432]}
"""


def policy(*rules, services=None, **groups):
    return Policy(
        policy=1, rules=rules, services=services, groups={k.replace("_", "-"): g for k, g in groups.items()}
    )


# the file, the proposal, the new groups, the new rules as (name, from, to, ports), a part of each message
TABLE = {
    "a group differs": (
        policy(DB, role_1=OLD),
        policy(rule("role-1", "db", "tcp/5432", "tcp/8443"), rule("role-1", "web", "tcp/443"), role_1=NEW),
        {"role-1-2": NEW},
        [
            ("role-1-2-to-db", "role-1-2", "db", ("tcp/5432", "tcp/8443")),
            ("role-1-2-to-web", "role-1-2", "web", ("tcp/443",)),
        ],
        ["group role-1: in the file it is hosts h1, h2, h3, in the proposal hosts h2, h3, h9; there it is role-1-2"],
    ),
    "only the group differs": (
        policy(DB, role_1=OLD), policy(DB, role_1=NEW), {"role-1-2": NEW},
        [("role-1-2-to-db", "role-1-2", "db", ("tcp/5432",))], ["group role-1: "],
    ),
    "of another kind: what is unregistered": (
        policy(DB, role_1=OLD), policy(DB, role_1=Group(hosts=OLD.hosts, unregistered=True)),
        {"role-1-2": Group(hosts=OLD.hosts, unregistered=True)},
        [("role-1-2-to-db", "role-1-2", "db", ("tcp/5432",))], ["outside of registered services"],
    ),
    "at the called end": (
        policy(rule("web", "role-1", "tcp/1"), role_1=OLD),
        policy(rule("web", "role-1", "tcp/1"), role_1=Group(cidrs=("192.0.2.0/24",))),
        {"role-1-2": Group(cidrs=("192.0.2.0/24",))},
        [("web-to-role-1-2", "web", "role-1-2", ("tcp/1",))], ["in the proposal CIDRs 192.0.2.0/24"],
    ),
    "the new name is taken by another group": (
        policy(DB, role_1=OLD, role_1_2=hosts("x")), policy(DB, role_1=NEW), {"role-1-3": NEW},
        [("role-1-3-to-db", "role-1-3", "db", ("tcp/5432",))], ["there it is role-1-3"],
    ),
    "the new name is a service's": (
        policy(DB, rule("web", "role-1-2", "tcp/1"), role_1=OLD), policy(DB, role_1=NEW), {"role-1-3": NEW},
        [("role-1-3-to-db", "role-1-3", "db", ("tcp/5432",))], ["there it is role-1-3"],
    ),
    "two at once": (
        policy(rule("role-1", "role-2", "tcp/1"), role_1=OLD, role_2=hosts("b")),
        policy(rule("role-1", "role-2", "tcp/1"), role_1=NEW, role_2=hosts("c")),
        {"role-1-2": NEW, "role-2-2": hosts("c")},
        [("role-1-2-to-role-2-2", "role-1-2", "role-2-2", ("tcp/1",))], ["group role-1: ", "group role-2: "],
    ),
    "a rule opens more": (
        policy(rule("web", "db", "tcp/5432")), policy(rule("web", "db", "tcp/5432", "tcp/8443")), {}, [],
        ["web-to-db: proposal also allows tcp/8443"],
    ),
    "a rule opens less": (
        policy(rule("web", "db", "tcp/1", "tcp/2")), policy(rule("web", "db", "tcp/2")), {}, [],
        ["web-to-db: proposal does not name tcp/1"],
    ),
    "a rule of the file denies": (
        policy(rule("web", "db", "tcp/1", action="deny")), policy(rule("web", "db", "tcp/1")), {}, [],
        ["web-to-db: proposal allows what the file denies"],
    ),
    "a rule of that name has another end": (
        policy(rule("cache", "db", "tcp/1", name="web-to-db")), policy(rule("web", "db", "tcp/1")), {}, [],
        ["web-to-db: proposal allows from web, the file from cache"],
    ),
    "a group of the file has the name of a service": (
        policy(rule("office", "db", "tcp/1"), office=OLD), policy(rule("office", "web", "tcp/2")), {}, [],
        ["office-to-web: not added: office is a service to the proposal, and a group of the file"],
    ),
    "a service of the file has the name of a group": (
        policy(rule("role-1", "web", "tcp/1")), policy(DB, role_1=NEW), {"role-1-2": NEW},
        [("role-1-2-to-db", "role-1-2", "db", ("tcp/5432",))], ["group role-1: in the file it is no group"],
    ),
    "the file governs fewer services": (
        policy(rule("web", "db", "tcp/1"), services=("web",)),
        policy(rule("web", "db", "tcp/1"), services=("web", "db")), {}, [], ["services: proposal also governs db"],
    ),
    "the same in another order": (
        policy(rule("role-1", "db", "tcp/1", "tcp/2"), role_1=hosts("a", "b")),
        policy(rule("role-1", "db", "tcp/2", "tcp/1"), role_1=hosts("b", "a")), {}, [], [],
    ),
    "a rule without a name that is there": (
        policy(rule("web", "db", "tcp/1")), policy(rule("web", "db", "tcp/1", name="")), {}, [], [],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("old", "proposal", "groups", "rules", "differs"), TABLE.values(), ids=TABLE.keys())
def test_what_a_proposal_adds(old, proposal, groups, rules, differs):
    found = additions(old, proposal)
    assert found.groups == groups
    assert [(one.name, one.from_, one.to, one.ports) for one in found.rules] == rules
    assert len(found.differs) == len(differs)
    for said, part in zip(found.differs, differs, strict=True):
        assert part in said
    joined = Policy(
        policy=1, services=old.services, groups=old.groups | found.groups, rules=old.rules + found.rules
    )
    again = additions(joined, proposal)
    assert (again.groups, again.rules) == ({}, ())


def test_no_line_of_the_file_changes_its_meaning():
    proposal = policy(
        rule("role-1", "db", "tcp/5432", "tcp/8443"), rule("role-1", "web", "tcp/443"), role_1=NEW
    )
    text, names = merged(FILE, proposal)
    assert names == ("role-1-2-to-db", "role-1-2-to-web")
    found = read(text)
    assert found.groups == {"role-1": OLD, "role-1-2": NEW}
    assert found.rules[0] == DB
    assert {one.from_ for one in found.rules[1:]} == {"role-1-2"}
    assert merged(text, proposal) == (text, ())
