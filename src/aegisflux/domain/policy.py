"""Policy as people write it: who may call whom, by services, labels, hosts and CIDRs (ADR 0021).

A policy names no address of a service: `policy_compile` finds those in an inventory, so that the policy stays
true while hosts come and go. How the text of a policy is read is not decided here: see `wire.policyfile`.

An end of a rule is one of

    web               a registered service, or a group of this policy
    fleet             every host
    anyone            every address that is no host's of the fleet
    host:web-1        one host
    label:env=prod    the hosts that bear a label
    10.0.0.0/8        a CIDR, or one address
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Final, Literal, NamedTuple, NoReturn

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from aegisflux.domain.errors import Invalid
from aegisflux.domain.local_denies import always_local
from aegisflux.domain.names import OPERATOR, check_name
from aegisflux.domain.net import TCP, UDP, Cidr, masked, parse_address, parse_cidr, parse_former_cidr
from aegisflux.domain.paths import step
from aegisflux.domain.snapshot import TTL_MAX, TTL_MIN, Established, Expiry, Mode, Proto
from aegisflux.domain.text import is_printable

MAX_RULES: Final = 5_000
MAX_GROUPS: Final = 10_000
MAX_MEMBERS: Final = 10_000
FLEET, ANYONE = "fleet", "anyone"
RESERVED: Final = frozenset({FLEET, ANYONE})
KINDS: Final = (
    "a service, a group of this policy, fleet, anyone, host:NAME, label:NAME=VALUE, a CIDR such as "
    "10.0.0.0/8, or an address"
)
LOCAL_DENIED: Final = (
    "an end of a deny that is not the host itself: what a host sends to itself is always allowed, so that no "
    "host holds it; take it out"
)
_ADDRESS: Final = re.compile(r"[\d.]+(?:/.*)?|[0-9a-fA-F]*:[0-9a-fA-F.]*:[0-9a-fA-F:.]*(?:[%/].*)?")
_PLAIN: Final = frozenset(
    {"service", "svc", "group", "cidr", "ip", "ipv4", "ipv6", "net", "subnet", "address"}
)
_TAGS: Final = frozenset({"tag", "labels", "role"})
_PORTS: Final = re.compile(r"(tcp|udp|any)(?:/([1-9][0-9]{0,4}))?")
_FORMER_PORT: Final = re.compile(r"(tcp|udp|any)/(\d{1,5})")
NUMBERS: Final[dict[Proto, tuple[int, ...]]] = {"tcp": (TCP,), "udp": (UDP,), "any": (TCP, UDP)}

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$(?!\n)")]
End = Annotated[str, Meta(min_length=1, max_length=320)]
Ends = End | Annotated[tuple[End, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]
PortText = Annotated[str, Meta(max_length=16, description="tcp/443, udp/53, any/53, tcp, udp, any")]


class Port(NamedTuple):
    """What a rule opens; port 0 is every port, of any: every protocol too."""

    proto: Proto
    port: int

    def __str__(self) -> str:
        return f"{self.proto}/{self.port}" if self.port else self.proto


class Group(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A name for hosts, by name or by all of these labels, and for CIDRs.

    unregistered: what runs on the hosts outside of every registered service: a rule of it is no service's,
                  though at the other end it cannot be told apart from the services there
    """

    hosts: Annotated[tuple[str, ...], Meta(max_length=MAX_MEMBERS)] = ()
    labels: dict[str, str] = {}
    cidrs: Annotated[tuple[str, ...], Meta(max_length=MAX_MEMBERS)] = ()
    unregistered: bool = False


class Rule(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """`from_` may (or, by `deny`, may not) call `to` on these ports. A deny beats every allow."""

    from_: Ends = field(name="from")
    to: Ends
    ports: Annotated[tuple[PortText, ...], Meta(min_length=1, max_length=1024)]
    name: Name = ""
    action: Literal["allow", "deny"] = "allow"
    why: Annotated[str, Meta(max_length=2048)] = ""


class Expectation(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A flow that must be let through, or must not; from every address of the one to each of the other."""

    from_: End = field(name="from")
    to: End
    port: PortText
    expect: Literal["allowed", "blocked"]


class Policy(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Rules, and what is governed by them.

    services: which are governed; absent: each registered service that a rule names
    extra_addresses: how many foreign addresses may be let in to save entries, for each end of a rule; never
                     one of the fleet's
    """

    policy: Literal[1]
    name: Name = "policy"
    ttl_seconds: Annotated[int, Meta(ge=TTL_MIN, le=TTL_MAX)] = 86_400
    mode: Mode = "enforce"
    on_expiry: Expiry = "open"
    established: Established = "keep"
    extra_addresses: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    services: Annotated[tuple[Name, ...], Meta(max_length=MAX_GROUPS)] | None = None
    groups: Annotated[dict[Name, Group], Meta(max_length=MAX_GROUPS)] = {}
    rules: Annotated[tuple[Rule, ...], Meta(max_length=MAX_RULES)] = ()
    tests: Annotated[tuple[Expectation, ...], Meta(max_length=MAX_RULES)] = ()


def ends_of(ends: Ends) -> tuple[str, ...]:
    """One or more ends as a list."""
    return (ends,) if isinstance(ends, str) else ends


def end_paths(rule: Rule, path: str) -> Iterator[tuple[str, str]]:
    """Yield (path, end) for each end of a rule."""
    for name, ends in (("from", rule.from_), ("to", rule.to)):
        for n, end in enumerate(ends_of(ends)):
            yield (f"{path}.{name}" if isinstance(ends, str) else f"{path}.{name}[{n}]"), end


def ends_named(rules: Iterable[Rule]) -> set[str]:
    """Every end that one of these rules names."""
    return {end for rule in rules for end in (*ends_of(rule.from_), *ends_of(rule.to))}


def label_of(rule: Rule, number: int) -> str:
    """How messages name a rule: by its name, else by its place in the list."""
    return rule.name or f"rules[{number}]"


def ports_of(rule: Rule, path: str) -> tuple[Port, ...]:
    """The rule's ports; raises Invalid by path."""
    return tuple(parse_port(text, f"{path}.ports[{n}]") for n, text in enumerate(rule.ports))


def parse_port(text: str, path: str) -> Port:
    """`tcp/443`, `udp`, `any`; raises Invalid by path."""
    found = _PORTS.fullmatch(text)
    if found is None or (found[2] is not None and not int(found[2]) <= 65_535):
        raise Invalid(path, "tcp/1 to tcp/65535, udp/53, any/53, tcp, udp or any", text)
    proto: Proto = "tcp" if found[1] == "tcp" else "udp" if found[1] == "udp" else "any"
    return Port(proto, int(found[2] or 0))


def cidr_of(text: str, path: str) -> Cidr | None:
    """The prefix that an end spells, None when it is a name; raises Invalid for one that is neither."""
    if text.startswith(("host:", "label:")):
        return None
    if "/" in text:
        return parse_cidr(text, path)
    if ":" not in text and not re.fullmatch(r"[\d.]+\.[\d.]*", text):
        return None
    address = parse_address(text, path)
    return masked(address.family, address.value, address.bits)


Odd = Callable[[Invalid], None]


def _refuse(error: Invalid) -> NoReturn:
    raise error


def check(policy: Policy, odd: Odd = _refuse) -> None:
    """What the schema cannot say: ports, CIDRs, doubled names; raises Invalid by path. Names of services and
    hosts are looked up when it is compiled.

    odd: what happens to a name that could be read as something else, which a policy that was stored before
    such names were refused may have; by default it is refused
    """
    seen: dict[str, int] = {}
    for n, rule in enumerate(policy.rules):
        ports_of(rule, f"rules[{n}]")
        if not all(map(is_printable, rule.why.split("\n"))):
            odd(Invalid(f"rules[{n}].why", "text in which each character can be seen", rule.why))
        for path, end in end_paths(rule, f"rules[{n}]"):
            _check_end(end, path, odd)
            if rule.action == "deny" and _is_local(end, policy.groups):
                odd(Invalid(path, LOCAL_DENIED, end))
        if rule.name and seen.setdefault(rule.name, n) != n:
            raise Invalid(f"rules[{n}].name", f"a name that rules[{seen[rule.name]}] has not", rule.name)
    for n, test in enumerate(policy.tests):
        if parse_port(test.port, f"tests[{n}].port").port == 0:
            raise Invalid(f"tests[{n}].port", "one port, as in tcp/443", test.port)
        _check_end(test.from_, f"tests[{n}].from", odd)
        _check_end(test.to, f"tests[{n}].to", odd)
    _check_groups(policy, odd)


def _is_local(end: str, groups: Mapping[str, Group]) -> bool:
    """Whether nothing is at an end but addresses that are local on every host."""
    group = groups.get(end)
    if group and (group.hosts or group.labels):
        return False
    try:
        cidrs = [cidr_of(text, "") for text in (group.cidrs if group else (end,))]
    except Invalid:  # of a group: it is refused there
        return False
    return bool(cidrs) and all(cidr is not None and always_local(cidr) for cidr in cidrs)


def _check_groups(policy: Policy, odd: Odd) -> None:
    for name, group in policy.groups.items():
        if name in RESERVED:
            raise Invalid(f"groups.{name}", f"a name other than {FLEET} and {ANYONE}", name)
        try:
            check_name(step("groups", name), name)
        except Invalid as error:
            odd(error)
        for n, text in enumerate(group.cidrs):
            if cidr_of(text, f"groups.{name}.cidrs[{n}]") is None:
                raise Invalid(f"groups.{name}.cidrs[{n}]", "a CIDR or an address", text)


def rewritten(policy: Policy, odd: Odd) -> Policy:
    """Return a stored policy in the spellings that are read now, each with its former meaning: `tcp/022` was
    22 once, and `::ffff:10.0.0.0/8` was ::/8. `odd` is told of each."""

    def port(text: str, path: str) -> str:
        found = _FORMER_PORT.fullmatch(text)
        return _told(text, f"{found[1]}/{int(found[2])}" if found else text, path, odd)

    def end(text: str, path: str) -> str:
        return _former_end(text, path, odd)

    def ends(given: Ends, path: str) -> Ends:
        if isinstance(given, str):
            return end(given, path)
        return tuple(end(one, f"{path}[{n}]") for n, one in enumerate(given))

    rules = tuple(
        replace(
            rule,
            from_=ends(rule.from_, f"rules[{n}].from"),
            to=ends(rule.to, f"rules[{n}].to"),
            ports=tuple(port(one, f"rules[{n}].ports[{m}]") for m, one in enumerate(rule.ports)),
        )
        for n, rule in enumerate(policy.rules)
    )
    tests = tuple(
        replace(
            test,
            from_=end(test.from_, f"tests[{n}].from"),
            to=end(test.to, f"tests[{n}].to"),
            port=port(test.port, f"tests[{n}].port"),
        )
        for n, test in enumerate(policy.tests)
    )
    groups = {
        name: replace(
            group,
            cidrs=tuple(
                end(text, f"{step('groups', name)}.cidrs[{n}]") for n, text in enumerate(group.cidrs)
            ),
        )
        for name, group in policy.groups.items()
    }
    return replace(policy, rules=rules, tests=tests, groups=groups)


def _former_end(text: str, path: str, odd: Odd) -> str:
    """The CIDR that an end was where it is one that is refused in a new policy, else the end."""
    if "/" not in text or ":" not in text:
        return text
    try:
        former = parse_former_cidr(text, path)
    except Invalid:  # it is a name, or no CIDR: `check` says so
        return text
    try:
        parse_cidr(text, path)
    except Invalid as error:
        odd(error)
        return str(former)
    return text


def _told(text: str, written: str, path: str, odd: Odd) -> str:
    if written != text:
        odd(Invalid(path, written, text))
    return written


def _check_end(end: str, path: str, odd: Odd) -> None:
    if not end.isprintable():
        odd(Invalid(path, "an end in which every character can be seen", end))
    kind, colon, rest = end.partition(":")
    if kind == "label" and colon:
        _check_label_end(rest, end, path, odd)
        return
    if kind != "host" and not _ADDRESS.fullmatch(end) and (colon or "/" in end):
        raise Invalid(path, KINDS + _instead(kind, rest), end)
    cidr_of(end, path)


def _check_label_end(label: str, end: str, path: str, odd: Odd) -> None:
    if sign := OPERATOR.match(label):
        odd(
            Invalid(
                path,
                f"label:NAME=VALUE, for {sign[1]} is no operator of ends: name each value that you mean, as "
                "in [label:env=a, label:env=b], or give those hosts a label of their own",
                end,
            )
        )
    if not re.fullmatch(r"[^=]+=.*", label, re.DOTALL):
        raise Invalid(path, "label:NAME=VALUE", end)


def _instead(kind: str, rest: str) -> str:
    """What to write for what other tools call an end."""
    if rest.isdecimal():
        return f"; ports have a field of their own: write {kind}, and tcp/{rest} in `ports`"
    if kind == "autogroup" or not rest:
        return ""
    if kind in _PLAIN:
        return f"; write {rest}"
    return "; write label:NAME=VALUE" if kind in _TAGS else ""
