"""`Ownership` keeps what `owners` says, whatever comes and goes, and looks only at what changed."""

from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from aegisflux.domain import ownership
from aegisflux.domain.ownership import Ownership
from aegisflux.domain.selectors import Selector, owners, parse_selector, parse_stored_selector

NAMES = ["web.service", "web.socket", "_web.service", "web@1.service", "web@1.socket", "web@.service",
         "web-1", "a", "b", "x.scope", "web.slice", "system-web.slice", "\udcff", "a\x1b"]  # fmt: skip
PARTS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
PATHS = st.one_of(
    PARTS,
    st.builds("{}/{}".format, st.sampled_from(["system.slice", "machine.slice", "kube.slice"]), PARTS),
    st.just("/".join(["a"] * 40)),
)
TEXTS = st.sampled_from(
    ["unit:web", "unit:web.socket", "unit:web@1", "unit:web@*", "unit:web@?.socket", "unit:w*", "unit:*",
     "unit:*1", "unit:*.scope", "unit:web@", "unit:[!x]*", "cgroup:**", "cgroup:a", "cgroup:a/**",
     "cgroup:*/web*", "cgroup:**/b", "cgroup:system.slice/*", "cgroup:system.slice/web.service",
     "cgroup:?", "cgroup:[ab]/*", "cgroup:[!a]*b"]
)  # fmt: skip
SERVICES = st.dictionaries(
    st.integers(1, 4),
    st.lists(
        TEXTS.map(lambda text: parse_stored_selector(text, slices=("system.slice", "kube.slice"))), max_size=3
    ),
    max_size=4,
)
HISTORY = st.lists(st.tuples(st.lists(PATHS, max_size=8), SERVICES), min_size=1, max_size=6)
KEPT = st.lists(st.booleans(), min_size=6, max_size=6)


@settings(max_examples=600, deadline=None)
@given(HISTORY, KEPT, KEPT, st.integers(1, 60), st.integers(0, 6))
def test_what_it_keeps_is_what_owners_says(history, same_paths, same_services, pairs, left_after):
    """Also where a change is left in the middle of its slices and another one follows."""
    known = Ownership()
    paths, services = history[0]
    with mock.patch.object(ownership, "PAIRS", pairs):
        for n, (next_paths, next_services) in enumerate(history):
            paths = [*paths, *next_paths] if same_paths[n] else next_paths
            services = services if same_services[n] else next_services
            for taken, _ in enumerate(known.follow(paths, services)):
                if taken == left_after:
                    break
            for _ in known.follow(paths, services):
                pass
            assert known.owners() == owners(set(paths), services)
            assert list(known.owners().services) == sorted(known.owners().services)


def test_a_change_looks_only_at_what_changed():
    """A path that comes is compared once with each selector, a selector that comes with each path."""
    known, asked = Ownership(), []
    paths = [f"p{n}.slice/{n}" for n in range(50)]
    services = {n: (parse_selector(f"cgroup:p{n}.slice/*"),) for n in range(20)}
    matches = Selector.matches

    def counted(selector: Selector, path: str) -> bool:
        asked.append((selector.pattern, path))
        return matches(selector, path)

    def asks(paths, services):
        asked.clear()
        for _ in known.follow(paths, services):
            pass
        known.owners()
        return list(asked)

    with mock.patch.object(Selector, "matches", counted):
        assert len(asks(paths, services)) == 20, "what cannot match is not compared at all"
        assert asks(paths, services) == []
        assert asks([*paths, "p7.slice/new"], services) == [("p7.slice/*", "p7.slice/new")]
        assert asks(paths, services) == []
        more = {**services, 99: (parse_selector("cgroup:p9.slice/?"),)}
        assert asks(paths, more) == [("p9.slice/?", "p9.slice/9")]
        assert asks(paths, services) == []


def test_a_pattern_is_taken_apart_once():
    """Not for each cgroup that comes: a host may have thousands of selectors."""
    known = Ownership()
    services = {n: (parse_selector(f"cgroup:p{n}*"), parse_selector(f"unit:p{n}")) for n in range(10)}
    with mock.patch.object(ownership, "plain_runs", side_effect=ownership.plain_runs) as taken:
        for count in (1, 2, 5, 3):
            assert list(known.follow([f"p{n}" for n in range(count)], services)) or count == 3
        assert taken.call_count == 20


def test_a_slice_of_work_is_small():
    """What is compared between two stops has a bound, whatever the number of cgroups and services."""
    known = Ownership()
    paths = [f"p{n}" for n in range(100)]
    services = {n: (parse_selector(f"cgroup:p{n}*"), parse_selector(f"unit:p{n}")) for n in range(10)}
    with mock.patch.object(ownership, "PAIRS", 40):
        assert len(list(known.follow(paths, services))) == 50, "2 paths with 20 selectors at a time"
        assert list(known.follow(paths, services)) == []
        assert len(list(known.follow(paths, {n + 10: s for n, s in services.items()}))) == 10, (
            "a service at a time"
        )
