"""A selector has the same limits at each layer: what the API accepts is bound by the agent and the kernel."""

from contextlib import suppress

import pytest

from aegisflux.adapters.datapath.bpf.followed import literal_key
from aegisflux.agent.parts import AgentSettings
from aegisflux.domain.errors import Invalid
from aegisflux.domain.selectors import MAX_PATH, parse_selector
from aegisflux.services.orchestrator.registry import _check

SIZES = [*range(50, 70), *range(100, 130), *range(200, 260), 400, 600]
NOTHING = ["cgroup:" + "x" * 255, "cgroup:[z-a]", "cgroup:a b", "cgroup:\x1b", "unit:"]


@pytest.mark.parametrize("kind", ["cgroup", "unit"])
@pytest.mark.parametrize("letter", ["x", "é", "日", "🙂"])
def test_what_the_api_accepts_is_a_key_of_the_kernel(kind: str, letter: str) -> None:
    """Sizes are bytes, not characters: 63 letters may be 252 bytes, and 64 of them 256."""
    for text in (f"{kind}:{letter * size}" for size in SIZES):
        if kind == "cgroup" and len(text.encode()) - len("cgroup:") > MAX_PATH:
            with pytest.raises(Invalid, match=r"selectors\[0\]"):
                _check("web", [text])
            continue
        with suppress(Invalid):
            _check("web", [text])
            for path in parse_selector(text).paths():
                literal_key(path)


@pytest.mark.parametrize("text", NOTHING)
def test_what_would_bind_nothing_is_refused_by_its_place(text: str) -> None:
    with pytest.raises(Invalid, match=r"selectors\[1\]"):
        _check("web", ["unit:web", text])


def test_slices_are_checked_when_the_agent_begins(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from aegisflux.agent_bootstrap import load_config

    monkeypatch.setenv("AEGISFLUX_AGENT_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("AEGISFLUX_AGENT_UNIT_SLICES", "kubepods.slice, a.slice/a-b.slice")
    assert load_config().settings().unit_slices == ("kubepods.slice", "a.slice/a-b.slice")
    assert AgentSettings().unit_slices == ()
    monkeypatch.setenv("AEGISFLUX_AGENT_UNIT_SLICES", "user.slice/*")
    with pytest.raises(Invalid, match="unit_slices"):
        load_config().settings()
