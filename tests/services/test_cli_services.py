"""What the command line says of changes of services: enough to approve one by."""

import json
from contextlib import suppress

import pytest

from aegisflux import cli
from aegisflux.cli import client, services

BEFORE = {"name": "web", "selectors": ["unit:web"], "host_labels": {"role": "web"}}
CHANGE = {
    "id": 7, "service_id": 101, "name": "web", "selectors": ["unit:web"], "host_labels": {}, "created_at": 1,
    "created_by": "olga", "reason": "it takes part in what hosts enforce", "before": BEFORE,
    "differs": ["host label role=web is removed"], "stale": [], "begin": {"count": 0, "hosts": []},
    "cease": {"count": 3, "hosts": ["w1", "w2"]},
}  # fmt: skip
WEB = {"id": 101, **BEFORE, "created_at": 1, "warning": "", "waits": CHANGE}
STALE = CHANGE | {"stale": ["name web becomes www"]}
APPROVE = "to approve change 7: aegisflux service approve 101 7"
ALL = (
    "change 7: host label role=web is removed",
    "change 7: hosts that begin to run the service: none",
    "change 7: hosts that cease to run the service: 3: w1, w2 and 1 more",
    "change 7 waits: it takes part in what hosts enforce",
    APPROVE,
)


@pytest.mark.parametrize(
    ("words", "answer", "said", "printed"),
    [
        ("service list", [WEB], ("changes wait for an approver: aegisflux service changes",), ("WAITS", "7")),
        ("service list", [WEB | {"waits": None}], (), ("WAITS", "-")),
        ("service put web --id 101", WEB, ALL, ()),
        ("service approve 101 7 --dry-run", WEB, ("dry run: nothing was changed", *ALL), ()),
        (
            "service changes",
            [CHANGE],
            (APPROVE,),
            ("DIFFERS", "host label role=web is removed", "BEGIN", "none", "3: w1, w2 and 1 more", "olga"),
        ),
        ("service changes", [STALE], ("change 7 cannot be approved: the service changed since",), ("www",)),
        ("service changes -o json", [CHANGE], (APPROVE,), (json.dumps(BEFORE["host_labels"])[1:-1],)),
    ],
)
def test_a_change_is_shown_with_what_it_does(words, answer, said, printed, monkeypatch, capsys):
    for module in (client, services):
        monkeypatch.setattr(module, "call", lambda *_given: answer)
    with suppress(SystemExit):
        cli.main(*words.split())
    out, err = capsys.readouterr()
    for text in said:
        assert text in err
    for text in printed:
        assert text in out
