"""`aegisflux policy` without a control plane: what it prints, in both forms, and its exit status."""

import json

import msgspec
import pytest

from aegisflux.cli import policy
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace

PLACES = Inventory(
    {"web": ServicePlace(1, ("w1",)), "db": ServicePlace(2, ("d1",))},
    {"w1": HostPlace({}, ("10.0.0.1",)), "d1": HostPlace({}, ("10.0.0.2",))},
)
GOOD = """\
policy: 1
rules:
  - {from: web, to: db, ports: [tcp/5432]}
tests:
  - {from: web, to: db, port: tcp/5432, expect: allowed}
"""
WIDE = GOOD.replace("tcp/5432]", "tcp]")
FAILS = GOOD.replace("expect: allowed", "expect: blocked")
WRONG = GOOD.replace("to: db, ports", "to: dbb, ports")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "places.json").write_bytes(msgspec.json.encode(PLACES))

    def made(text):
        (tmp_path / "policy.yaml").write_text(text)
        return tmp_path / "policy.yaml", tmp_path / "places.json"

    return made


@pytest.mark.parametrize(
    ("command", "text", "status", "out", "err"),
    [
        (policy.validate, GOOD, 0, "KIND", "1 rules, 2 services, 2 entries"),
        (policy.validate, WIDE, 1, "too_broad  rules[0]  tcp is every port", "1 rules"),
        (policy.validate, WRONG, 2, "", "rules[0]: no service, group or kind of end is named 'dbb'"),
        (policy.validate, "policy: [", 2, "", "line 1: expected YAML"),
        (policy.run_tests, GOOD, 0, "NUMBER", "1 of 1 tests hold"),
        (
            policy.run_tests,
            FAILS,
            1,
            "10.0.0.1  10.0.0.2  tcp    5432  blocked   allowed",
            "0 of 1 tests hold",
        ),
        (policy.run_tests, WRONG, 2, "", "dbb"),
    ],
)
def test_what_is_said_and_the_status(files, capsys, command, text, status, out, err):
    file, places = files(text)
    with pytest.raises(SystemExit) as ended:
        command(file, inventory=places)
    said = capsys.readouterr()
    assert (ended.value.code, out in said.out, err in said.err) == (status, True, True), said


def test_programs_get_json(files, capsys):
    file, places = files(FAILS)
    with pytest.raises(SystemExit):
        policy.run_tests(file, inventory=places, output="json")
    (broken,) = json.loads(capsys.readouterr().out)
    assert (broken["expected"], broken["got"], broken["port"]) == ("blocked", "allowed", 5432)
