"""A rollout in stages on real kernels: what each stage says, a kernel does."""

import pytest
from tests.support.site import ENGINES, SERVICE, Site, until
from tests.support.staged import Staged

pytestmark = [pytest.mark.bpf, pytest.mark.netns, pytest.mark.engines]


def killed(staged):
    """Everything but the hosts; until it is back."""
    site = staged.site
    for engine in ENGINES:
        assert site.pids(engine), engine
        site.kill(engine)
    until(site.ready, 60, site.fleet.tail_of_log)
    staged.ready()


@pytest.fixture(scope="module")
def staged():
    with Site(("alpha", "beta")) as site:
        site.machine("peer").serve("world", 7001, 7002, 7003)
        staged = Staged(site)
        staged.recorded(7001, 7002)
        yield staged


def test_observe_canary_waves_promoted_by_traffic_alone(staged):
    """Beside, nothing is blocked; on the canary only what is allowed lives; then everywhere."""
    number = staged.begin(staged.plan(7001, 7002))
    until(lambda: staged.site.status("alpha")["beside"] == 1, 20)
    assert staged.calls(7003) == ["connected"] * 2
    staged.goes_on(number, "canary", 7001, 7002)
    staged.holds("alpha", 7003, "EPERM")
    assert (staged.call("alpha", 7001), staged.call("beta", 7003)) == ("connected", "connected")
    staged.goes_on(number, "promoted", 7001, 7002)
    staged.holds("beta", 7003, "EPERM")
    assert staged.calls(7001, 7002) == ["connected"] * 4
    steps = [(step["stage"], step["turn"]) for step in staged.told(number)["steps"]]
    assert steps == [("observe", 0), ("canary", 0), ("waves", 0), ("promoted", 0)]


def test_what_would_be_cut_is_caught_while_nothing_is_blocked(staged):
    number = staged.begin(staged.plan(7001))
    staged.goes_on(number, "aborted", 7001, 7002)
    assert "legitimate flows denied" in staged.reason(number)
    (way,) = {
        (way["client"], way["what"], way["legitimate"])
        for way in staged.told(number)["rollout"]["looked"]["ways"]
    }
    assert way == ("app", "tcp/7002", True)
    assert staged.calls(7001, 7002) == ["connected"] * 4


def test_a_host_refuses_to_cut_what_it_did_lately(staged):
    """Pushed past the observing: the canary's own pre-flight names the flow, and the rollout goes back."""
    number = staged.begin(staged.plan(7001))
    staged.move(number, "promote")
    told = staged.at(number, "rolled_back")
    peer = staged.site.address("peer")
    reason = told["rollout"]["run"]["reason"]
    assert "alpha refused: app version" in reason
    assert f"preflight: it would cut what is alive on this host: to {peer} tcp/7002" in reason
    assert staged.calls(7001, 7002) == ["connected"] * 4


def test_a_harmful_canary_is_rolled_back_by_the_first_flow_that_it_cuts(staged):
    """An agent that just started knows of no recent flow; the refusal of the kernel is the evidence. By flows
    alone the canary would not pass, however late the refusal is heard of.
    """
    site = staged.site
    number = staged.begin(staged.plan(7001, gate={"least_flows": 10_000}))
    site.end_agent("alpha")
    site.start_agent("alpha")
    staged.move(number, "promote")
    staged.enforces(number)
    assert staged.call("alpha", 7002) == "EPERM"
    took = staged.holds("alpha", 7002, "connected")
    told = staged.at(number, "rolled_back")
    assert "legitimate flows denied: expected at most 0" in told["rollout"]["run"]["reason"]
    assert took < 15
    assert staged.call("beta", 7002) == "connected"
    observed = [site.status(host).get("observed") or {} for host in ("alpha", "beta")]
    versions = [seen.get("version", 0) for seen in observed]
    assert versions[0] > versions[1], (
        "the canary has the old content under a new version; beta was not touched"
    )


def test_a_canary_whose_agent_dies_is_given_up(staged):
    """Nobody hears of it any more: the desired state goes back; when it returns it takes that."""
    site = staged.site
    number = staged.begin(staged.plan(7001, 7002, 7003, gate={"silent_seconds": 6, "least_flows": 10_000}))
    staged.move(number, "promote")
    staged.holds("alpha", 7003, "connected")
    site.end_agent("alpha")
    told = staged.at(number, "rolled_back", 40)
    assert "alpha is silent for" in told["rollout"]["run"]["reason"]
    site.start_agent("alpha")
    staged.holds("alpha", 7003, "EPERM")


@pytest.mark.nightly
def test_every_service_is_killed_in_every_stage_and_it_goes_on(staged):
    """kill -9 of NATS, PostgreSQL and all our services at once, four times; no call of a program suffers."""
    site = staged.site
    number = staged.begin(staged.plan(7001, 7002, 7003, gate={"silent_seconds": 60}))
    for stage in ("canary", "waves", "promoted"):
        killed(staged)
        staged.goes_on(number, stage, 7001, seconds=90)
    killed(staged)
    assert staged.stage(number) == "promoted"
    for host in ("alpha", "beta"):
        staged.holds(host, 7003, "connected")
    maps = site.api.get(f"/seg/maps/{SERVICE}").body
    assert maps["stable"]["version"] == maps["latest"]
