"""What the audit log says of rights, and what it is compared with; of a real store:
tests/services/test_agreement.py."""

from aegisflux.domain import agreement
from aegisflux.domain.audit import Entry, Line

MADE = "made sha256:" + "0" * 32
OLD_ENTRIES = [
    Entry("admin", "host.token", "host/*", after="0011223344556677"),
    Entry("admin", "host.enroll", "host/web-1", after="a2V5"),
    Entry("admin", "host.relabel", "host/web-1", before="{}", after="{'role': 'web'}"),
    Entry("admin", "service.put", "service/7", after="web ['unit:web'] {'role': 'web'}"),
    Entry("admin", "snapshot.post", "service/7/version/1", after="sha256:aa"),
    Entry("admin", "snapshot.promote", "service/7/version/1", after="sha256:aa"),
    Entry("admin", "rollout.observe", "rollout/1", after="turn 0"),
    Entry("op", "service.ask", "service/7", after="web ['unit:more'] {}", reason="it takes part"),
    Entry("op", "segment.plan", "plan/4", after="sha256:cc", reason="policy sha256:dd"),
    Entry("second", "segment.approve", "plan/4", after="sha256:cc"),
]
OLD = [Line(number, 0, entry) for number, entry in enumerate(OLD_ENTRIES, 1)]
HAS = {
    "enrolment/0011223344556677": '* {"role":"web"} until 9, used by web-1',
    "host/web-1": 'a2V5 {"role":"web"}',
    "service/7": "web ['unit:web'] {'role': 'web'}",
    "service/7/stable": "1",
    "service/7/latest": "2",
    "service/7/change": "web ['unit:more'] {}",
    "service/7/change/made": MADE,
    "plan/4": "sha256:cc, approved by second",
    "plan/4/policy": "policy sha256:dd",
    "plan/4/made": MADE,
    "plan/4/approver": "token/1",
    "rollout/1/made": MADE,
    "rollout/1/steps": "1",
    "service/7/version/1": "sha256:aa",
    "service/7/version/2": "sha256:bb",
    "rollout/1": "observe",
}


def test_what_older_lines_left_out_is_adopted_once_and_compared_from_then_on():
    log = agreement.said(OLD)
    adopted = dict(agreement.untold(log, HAS))
    assert set(adopted) == {
        "enrolment/0011223344556677", "host/web-1", "service/7/stable", "service/7/version/2",
        "service/7/change/made", "plan/4/made", "plan/4/approver", "rollout/1/made",
    }  # fmt: skip
    for name, text in adopted.items():
        log.take(Entry("system", agreement.ADOPT, name, after=text))
    assert not list(agreement.differences(log, HAS))
    assert not list(agreement.untold(log, HAS))
    for name, text in HAS.items():
        changed = HAS | {name: text + "x"}
        assert [line.partition(":")[0] for line in agreement.differences(log, changed)] == [name]
        gone = {key: had for key, had in HAS.items() if key != name}
        assert [line.partition(":")[0] for line in agreement.differences(log, gone)] == [name]


def test_what_was_wrong_before_is_not_adopted():
    log = agreement.said(OLD)
    forged = HAS | {
        "service/7": "web ['unit:*'] {}",
        "rollout/1": "promoted",
        "service/7/version/1": "sha256:cc",
    }
    names = {line.partition(":")[0] for line in agreement.differences(log, forged)}
    assert {"service/7", "rollout/1", "service/7/version/1"} <= names
    assert not {"service/7", "rollout/1", "service/7/version/1"} & set(dict(agreement.untold(log, forged)))
