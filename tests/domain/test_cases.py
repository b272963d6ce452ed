"""The 600 conformance cases, by the oracle and by the compiled tables."""

import pytest

from aegisflux.domain.compile import compile_tables
from aegisflux.domain.snapshot import ruleset
from aegisflux.domain.verdict import judge
from aegisflux.domain.verdict_of_tables import judge_tables
from tests.support.cases import CASES, load_cases


@pytest.mark.skipif(
    not CASES.exists(), reason=f"{CASES} is not here: the conformance cases lie beside the project"
)
def test_the_conformance_cases_hold_for_the_oracle_and_the_tables() -> None:
    cases = load_cases()
    assert len(cases) == 600
    for snapshot, flow, host, expected in cases:
        rules = ruleset(snapshot)
        verdict = judge(rules, flow, host)
        assert (verdict.action, verdict.reason) == expected, (snapshot, flow)
        assert judge_tables(compile_tables(rules), rules, flow, host) == verdict
