r"""What ends in a character that no one sees is not the name before it: `$` of Python lets `web\n` in."""

import base64
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from aegisflux.agent.enroll import HOST
from aegisflux.domain.decoding import converted
from aegisflux.domain.errors import Invalid
from aegisflux.domain.event import BootId
from aegisflux.domain.manifest import Digest, HostId
from aegisflux.domain.net import parse_address, parse_cidr
from aegisflux.domain.policy import Name, Policy, check, parse_port
from aegisflux.domain.selectors import parse_selector
from aegisflux.runtime.http import REQUEST_ID
from aegisflux.services.orchestrator import routes
from aegisflux.services.orchestrator.panic import Words
from aegisflux.services.segmenter.api import Approval
from aegisflux.wire.subjects import host_of, host_token
from aegisflux.wire.token import Hex256, parse_token

sys.path.insert(0, str(Path(__file__).parents[2] / "script/lib"))
import patterns

ENDS = ["\n", "\r", "\r\n", "\x00", "\u2028", "\u2029", "\x85", "\n\n"]
SHA = "sha256:" + "0" * 64


def policy(text, **more):
    check(
        converted({"policy": 1, "rules": [{"from": "web", "to": "db", "ports": ["tcp/1"], **more}]}, Policy)
    )
    return text


def policy_of(**more):
    check(converted({"policy": 1, **more}, Policy))


def encoded(**more):
    token = {"url": "https://x", "ca_sha256": "0" * 64, "root_sha256": "0" * 64, "secret": "s" * 32, **more}
    return "aegis1." + base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def whole(found):
    if not found:
        raise Invalid("text", "a match", "none")


GIVEN = {
    "name": ("web", lambda text: converted(text, Name)),
    "host": ("h1", lambda text: converted(text, HostId)),
    "digest": (SHA, lambda text: converted(text, Digest)),
    "hash": ("0" * 64, lambda text: converted(text, Hex256)),
    "boot": ("b-1", lambda text: converted(text, BootId)),
    "words": ("all is well", lambda text: converted(text, Words)),
    "service of a policy": ("web", lambda text: policy_of(services=[text])),
    "group of a policy": ("backends", lambda text: policy_of(groups={text: {}})),
    "name of a policy": ("main", lambda text: policy_of(name=text)),
    "name of a rule": ("r1", lambda text: policy(text, name=text)),
    "port of a rule": ("tcp/443", lambda text: policy(text, ports=[text])),
    "address of a rule": ("10.0.0.1", lambda text: policy(text, to=text)),
    "prefix of a rule": ("10.0.0.0/8", lambda text: policy(text, to=text)),
    "label of a rule": ("label:a=b", lambda text: policy(text, to=text)),
    "host of a rule": ("host:h1", lambda text: policy(text, to=text)),
    "end of a test": (
        "web",
        lambda text: policy_of(tests=[{"from": text, "to": "db", "port": "tcp/1", "expect": "allowed"}]),
    ),
    "port": ("tcp/443", lambda text: parse_port(text, "port")),
    "cidr": ("10.0.0.0/8", lambda text: parse_cidr(text, "cidr")),
    "address": ("::1", lambda text: parse_address(text, "address")),
    "selector": ("unit:nginx", parse_selector),
    "cgroup": ("cgroup:a/b", parse_selector),
    "service": ("web", lambda text: converted({"name": text}, routes.ServiceRequest)),
    "host of a token": ("h1", lambda text: converted({"host_id": text}, routes.HostTokenRequest)),
    "name of an API token": (
        "bob",
        lambda text: converted({"name": text, "role": "admin"}, routes.TokenRequest),
    ),
    "host of an API token": (
        "h1",
        lambda text: converted({"name": "x", "role": "source", "host_id": text}, routes.TokenRequest),
    ),
    "approval": (SHA, lambda text: converted({"digest": text}, Approval)),
    "host of a subject": ("h1", host_token),
    "subject": ("agent.acks.h1", host_of),
    "host that enrols": ("h1", lambda text: whole(HOST.fullmatch(text))),
    "request id": ("r-1", lambda text: whole(REQUEST_ID.fullmatch(text))),
    "hash in a token": ("0" * 64, lambda text: parse_token(encoded(ca_sha256=text))),
    "root in a token": ("0" * 64, lambda text: parse_token(encoded(root_sha256=text))),
}


@pytest.mark.parametrize(("text", "read"), GIVEN.values(), ids=GIVEN)
def test_nothing_unseen_follows_a_name(text, read):
    read(text)
    taken = []
    for end in ENDS:
        try:
            read(text + end)
            taken.append(end)
        except Invalid:
            continue
    assert taken == []


def test_a_message_says_the_pattern_in_words():
    with pytest.raises(
        Invalid, match=r'expected at most 63 of a-z, 0-9 and \. _ -, the first of .*, got "web'
    ):
        converted("web\n", Name)


@pytest.mark.parametrize(
    ("source", "fine"),
    [
        ('Meta(pattern="^a$")', False),
        ('Meta(pattern=r"a$(?!\\n)")', False),
        ('Meta(pattern=r"\\Aa\\Z")', False),
        ('Meta(pattern=r"^a$(?!\\n)")', True),
        ('P = "^a$"\nMeta(pattern=P)', False),
        ('P = r"^a$(?!\\n)"\nMeta(pattern=P)', True),
        ("Meta(pattern=imported)", False),
        ('Parameter(pattern="^a$")', False),
        ('re.match("a$", x)', False),
        ('re.compile(rb"a$")', False),
        ('re.compile(rf"{x}a$")', False),
        (r're.compile("(?:a|b$)\\Z")', False),
        (r're.compile(r"a\$")', True),
        (r're.compile(r"a\\$")', False),
        (r're.compile(r"[$]")', True),
        (r're.compile(r"a\Z")', True),
    ],
)
def test_the_check_of_patterns_finds_an_early_end(source, fine):
    assert (not list(patterns.of_source(source))) is fine


def test_python_lets_a_line_break_follow():
    """Why there is a guard at all."""
    assert msgspec.convert("web\n", Annotated[str, Meta(pattern="^[a-z]+$")]) == "web\n"
