"""A setting that is wrong is named, wherever it stands: no start with it, and no command stopped by it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from aegisflux import agent_bootstrap, settings
from aegisflux.agent.config import AgentConfig
from aegisflux.agent.failsafes import EXAMPLE
from aegisflux.domain.errors import Invalid
from aegisflux.runtime import configured

AEGISFLUX = str(Path(sys.executable).parent / "aegisflux")
REPOSITORY = Path(__file__).resolve().parents[2]
MISTYPED = {
    "AEGISFLUX_AGENT_OBSERVEONLY": "AEGISFLUX_AGENT_OBSERVE_ONLY",
    "AEGISFLUX_AGENT_FAIL_SAFE": "AEGISFLUX_AGENT_FAILSAFE",
    "AEGISFLUX_AGENT_TELEMETRY_ENABLE": "AEGISFLUX_AGENT_TELEMETRY_ENABLED",
    "AEGISFLUX_AGENT_UNIT_SLICE": "AEGISFLUX_AGENT_UNIT_SLICES",
    "aegisflux_agent_observe_only": "AEGISFLUX_AGENT_OBSERVE_ONLY",
    "AEGISFLUX_AGENTOBSERVE_ONLY": "AEGISFLUX_AGENT_OBSERVE_ONLY",
    "AEGISFLUX_OBSERVE_ONLY": "AEGISFLUX_AGENT_OBSERVE_ONLY",
    "AEGISFLUX_AGNET_OBSERVE_ONLY": "AEGISFLUX_AGENT_OBSERVE_ONLY",
    "AEGISFLUX_AGENT_CONFG": "AEGISFLUX_AGENT_CONFIG",
    "AEGISFLUX_PORTBASE": "AEGISFLUX_PORT_BASE",
    "AEGISFLUX_LIMITS_NEVERBLOCK": "AEGISFLUX_LIMITS_NEVER_BLOCK",
    "AEGISFLUX_LEASE_MAX_SECONDS": "AEGISFLUX_LEASES_MAX_SECONDS",
    "AEGISFLUX_RETENTION_FLOW_DAYS": "AEGISFLUX_RETENTION_FLOWS_DAYS",
    "AEGISFLUX_TOKENS": "AEGISFLUX_TOKEN",
    "AEGISFLUX_LIMITS": "AEGISFLUX_LIMITS_WINDOWS",
    "AEGISFLUX_XYZZY": "",
}
POD = {
    "AEGISFLUX_SERVICE_HOST": "10.0.0.1",
    "AEGISFLUX_SERVICE_PORT_HTTP": "8081",
    "AEGISFLUX_PORT": "tcp://10.0.0.1:8081",
    "AEGISFLUX_PORT_8081_TCP_ADDR": "10.0.0.1",
    "AEGISFLUX_AGENT_CGROUP_ROOT": "/sys/fs/cgroup",  # of environments of earlier versions
}


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.upper().startswith("AEGISFLUX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AEGISFLUX_AGENT_CONFIG", str(tmp_path / "agent.toml"))


@pytest.mark.parametrize(("name", "meant"), MISTYPED.items())
def test_a_mistyped_variable_is_refused_by_agent_and_control_plane(name, meant, monkeypatch):
    hint = f"did you mean {meant}?" if meant else "docs/reference/settings.md"
    with pytest.raises(Invalid, match=rf"\A{name}: .*{re.escape(hint)}"):
        settings.load(None, {name: "true"})
    monkeypatch.setenv(name, "true")
    with pytest.raises(Invalid, match=rf"\A{name}: .*{re.escape(hint)}"):
        agent_bootstrap.load_config()


def test_one_environment_may_be_that_of_all_of_us(monkeypatch, tmp_path):
    control = settings.load(None, {}, data_dir=str(tmp_path)).environment()
    agent = {"AEGISFLUX_AGENT_OBSERVE_ONLY": "true", "AEGISFLUX_AGENT_TELEMETRY_ENABLED": "false"}
    given = control | agent | POD | {"AEGISFLUX_URL": "http://x", "AEGISFLUX_TOKEN": "x"}
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    assert settings.load(None, given).data == tmp_path
    assert agent_bootstrap.load_config().observe_only
    monkeypatch.delenv("AEGISFLUX_SERVICE_HOST")
    with pytest.raises(Invalid, match="AEGISFLUX_PORT"):
        agent_bootstrap.load_config()


def test_every_variable_that_the_repository_names_is_known():
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    folders = ("src", "tests", "bench", "demo", "script", "docs", "examples", "deploy")
    named = {
        found
        for path in listed.stdout.splitlines()
        if path.startswith(folders)
        and not path.startswith("docs/adr/")
        and not path.endswith(Path(__file__).name)
        for found in re.findall(
            r"AEGISFLUX_[A-Z_]*[A-Z]\b(?!_)", (REPOSITORY / path).read_text(errors="ignore")
        )
    }
    assert len(named) > 50
    assert [str(error) for error in settings.unknown_variables(dict.fromkeys(named, "x"))] == []


# Commands


def agent(*words: str, tmp_path: Path, **given: str) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("AEGISFLUX_")}
    base = {"AEGISFLUX_AGENT_STATE_DIR": str(tmp_path / "state"), "AEGISFLUX_AGENT_INSTANCE": "named-test"}
    env = clean | base | {"AEGISFLUX_AGENT_CONFIG": str(tmp_path / "agent.toml")} | given
    return subprocess.run(
        [AEGISFLUX, "agent", *words], env=env, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_start_is_refused(tmp_path):
    done = agent("run", tmp_path=tmp_path, AEGISFLUX_AGENT_OBSERVEONLY="true")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "aegisflux agent: AEGISFLUX_AGENT_OBSERVEONLY: expected a variable that AegisFlux reads; did you "
        'mean AEGISFLUX_AGENT_OBSERVE_ONLY?, got "true"\n'
    )


@pytest.mark.parametrize(
    ("words", "given", "text"),
    [
        *(
            (words, {"AEGISFLUX_AGENT_OBSERVEONLY": "true"}, "")
            for words in ("panic", "resume", "status", "why 1 tcp 10.0.0.1 22", "denied")
        ),
        ("panic", {"AEGISFLUX_AGENT_TICK_SECONDS": "0"}, ""),
        ("panic", {"AEGISFLUX_AGENT_FAILSAFE": "[{"}, ""),
        ("panic", {}, "tick_seconds = 0"),
        ("panic", {}, "unit_slices = ['user.slice/*']"),
        ("panic", {}, "= 1"),
        ("resume", {}, "observeonly = true"),
    ],
)
def test_a_wrong_setting_stops_no_command(words, given, text, tmp_path):
    (tmp_path / "agent.toml").write_text(text)
    wrong = agent(*words.split(), "--instance", "named-test-nobody", tmp_path=tmp_path, **given)
    warnings = [line for line in wrong.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1, wrong.stderr
    assert wrong.returncode == 3
    assert 'got "named-test-nobody"' in wrong.stderr, "it came as far as to look for the instance"


def test_doctor_lists_what_is_wrong(tmp_path):
    done = agent("doctor", "-o", "json", tmp_path=tmp_path, AEGISFLUX_AGENT_UNIT_SLICE="x")
    (found,) = [one for one in json.loads(done.stdout)["checks"] if one["name"] == "settings"]
    assert (done.returncode, found["ok"], found["required"]) == (1, False, True)
    assert "AEGISFLUX_AGENT_UNIT_SLICES" in found["detail"]


def test_talk_that_nobody_reads_stops_no_panic(tmp_path):
    """The warning comes before the panic does anything."""
    env = os.environ | {"AEGISFLUX_AGENT_STATE_DIR": str(tmp_path), "AEGISFLUX_AGENT_OBSERVEONLY": "1"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [AEGISFLUX, "agent", "panic", "--instance", "named-test-nobody"],
            env=env,
            stderr=full,
            check=False,
        )
    assert done.returncode == 3, "the instance is not known; 2 is an error of ours"


# Numbers


def numbers(kind: type, prefix: str, path: str = "") -> list[tuple[str, str, object]]:
    found = []
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            found += numbers(field.type, f"{prefix}{field.name.upper()}_", f"{path}{field.name}.")
        elif configured.allowed(field.type).startswith(("a number", "an integer")):
            found.append((path + field.name, prefix + field.name.upper(), field.type))
    return found


CONTROL, AGENT = numbers(settings.Settings, "AEGISFLUX_"), numbers(AgentConfig, "AEGISFLUX_AGENT_")
NUMBERS = [("control", *one) for one in CONTROL] + [("agent", *one) for one in AGENT]


def test_there_are_numbers():
    assert len(CONTROL) >= 12
    assert len(AGENT) >= 12


@pytest.mark.parametrize(
    "text", ["-1", "nan", "inf", "-inf", "1e400", "999999999999999999999", "true", '"x"', "[1]"]
)
@pytest.mark.parametrize(("whose", "path", "variable", "kind"), NUMBERS, ids=lambda one: str(one)[:40])
def test_each_number_has_bounds(whose, path, variable, kind, text, tmp_path, monkeypatch):
    expected = re.escape(f"{path}: expected ")
    file = tmp_path / "agent.toml"
    file.write_text(f"{path} = {text}\n")
    with pytest.raises(Invalid, match=expected) as in_file:
        settings.load(file, {}) if whose == "control" else agent_bootstrap.load_config(file)
    file.unlink()
    monkeypatch.setenv(variable, text)
    with pytest.raises(Invalid, match=expected) as in_environment:
        settings.load(None, dict(os.environ)) if whose == "control" else agent_bootstrap.load_config()
    assert str(in_file.value).startswith(f"{file}: {path}: ")
    assert str(in_environment.value).startswith(f"{variable}: {path}: ")


@pytest.mark.parametrize(
    "name",
    [
        path
        for path, _, kind in CONTROL + AGENT
        if path.endswith("_seconds") and ".1" in configured.allowed(kind)
    ],
)
@pytest.mark.parametrize("text", ["0", "0.0", "0.01"])
def test_no_loop_is_without_a_pause(name, text, tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text(f"{name} = {text}\n")
    with pytest.raises(Invalid, match=rf"{re.escape(name)}: expected a number from 0\.1 to 86400, got 0"):
        agent_bootstrap.load_config(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('datapath = "none"', 'datapath: expected one of bpf, simulated, got "none"'),
        ('datapath = "BPF"', 'datapath: expected one of bpf, simulated; did you mean bpf?, got "BPF"'),
        ("observe_only = 7", "observe_only: expected true or false, got 7"),
        ('observe_only = "yes"', 'observe_only: expected true or false, got "yes"'),
        ("instance = 3", "instance: expected a string, got 3"),
        ('unit_slices = "a.slice"', 'unit_slices: expected an array, got "a.slice"'),
        ("unit_slices = [3]", "unit_slices[0]: expected a string, got 3"),
        (
            "heartbeat_second = 3",
            "heartbeat_second: expected a known setting; did you mean heartbeat_seconds?, got 3",
        ),
        (
            "[telemetry]\nenable = 3",
            "telemetry.enable: expected a known setting; did you mean enabled?, got 3",
        ),
        ("telemetry = 3", "telemetry: expected a table of settings, got 3"),
        (
            "failsafe = 3",
            f"failsafe: expected an array of lines such as {EXAMPLE}, got 3",
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_file_the_setting_and_the_value(text, message, tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(Invalid) as refused:
        agent_bootstrap.load_config(file)
    assert str(refused.value) == f"{file}: {message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"direction": "in"}, 'direction: expected one of egress, ingress, got "in"'),
        (
            {"direction": "Ingress"},
            'direction: expected one of egress, ingress (did you mean ingress?), got "Ingress"',
        ),
        ({"proto": 6}, "proto: expected one of "),
        ({"prot": 22}, 'prot: expected no such field, got "prot"'),
        ({"port": "ssh"}, 'port: expected an integer, got "ssh"'),
        ({"port": ...}, 'port: expected a value (the field is required), got "nothing"'),
        ({"cidr": 3}, "cidr: expected "),
    ],
)
def test_a_wrong_failsafe_line_says_what_to_write(line, message, tmp_path):
    given = {"direction": "ingress", "proto": "tcp", "port": 22} | line
    shown = ", ".join(f"{name} = {json.dumps(text)}" for name, text in given.items() if text is not ...)
    file = tmp_path / "agent.toml"
    file.write_text(f"failsafe = [{{{shown}}}]\n")
    (told,) = agent_bootstrap.load_config(file).failsafe_refused
    assert told.startswith(f"failsafe 1: {message}"), told
    assert told.endswith(f"; a line is such as {EXAMPLE}")
