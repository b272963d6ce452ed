"""A selector has the same limits at each layer: what the API accepts is bound by the agent and the kernel."""

import pytest

from aegisflux.adapters.datapath.bpf.followed import literal_key
from aegisflux.agent.parts import AgentSettings
from aegisflux.domain.errors import Invalid
from aegisflux.domain.selectors import MAX_PATH, parse_selector
from aegisflux.services.orchestrator.registry import _check

UNITS = ["x", "x@1", "my-x@1", "é@1"]


@pytest.mark.parametrize("kind", ["cgroup", "unit"])
@pytest.mark.parametrize("letter", ["x", "é", "日", "🙂"])
@pytest.mark.parametrize("size", [*range(50, 70), *range(100, 130), *range(200, 260), 400, 600])
def test_what_the_api_accepts_is_a_key_of_the_kernel(kind: str, letter: str, size: int) -> None:
    """Sizes are bytes, not characters: 63 to 255 characters are 252 to 255 bytes."""
    text = f"{kind}:{letter * size}"
    try:
        _check("web", [text], {})
    except Invalid as error:
        assert error.path == "selectors[0]"
        if kind == "cgroup":
            assert len(text.encode()) - len("cgroup:") > MAX_PATH
        return
    for path in parse_selector(text).paths():
        literal_key(path)


@pytest.mark.parametrize(
    "text", ["cgroup:" + "x" * 255, "cgroup:[z-a]", "cgroup:a b", "cgroup:\x1b", "unit:"]
)
def test_what_would_bind_nothing_is_refused_by_its_place(text: str) -> None:
    with pytest.raises(Invalid, match=r"selectors\[1\]"):
        _check("web", ["unit:web", text], {})


def test_slices_are_checked_when_the_agent_begins(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from aegisflux.agent_bootstrap import load_config

    monkeypatch.setenv("AEGISFLUX_AGENT_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("AEGISFLUX_AGENT_UNIT_SLICES", "kubepods.slice, a.slice/a-b.slice")
    assert load_config().settings().unit_slices == ("kubepods.slice", "a.slice/a-b.slice")
    assert AgentSettings().unit_slices == ()
    monkeypatch.setenv("AEGISFLUX_AGENT_UNIT_SLICES", "user.slice/*")
    with pytest.raises(Invalid, match="unit_slices"):
        load_config().settings()
