"""The systemd unit says what the agent needs, and starts it before anything networked."""

import configparser

import pytest

from aegisflux.agent.notes import NOTES


@pytest.fixture
def unit(repository):
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str
    parser.read_string((repository / "deploy" / "aegisflux-agent.service").read_text())
    return parser


def test_it_is_ready_when_it_says_so_and_before_the_network(unit):
    assert unit["Service"]["Type"] == "notify"
    assert "network-pre.target" in unit["Unit"]["Before"].split()
    assert unit["Service"]["Restart"] == "always"


def test_its_capabilities_are_few(unit):
    ambient = set(unit["Service"]["AmbientCapabilities"].split())
    assert ambient == {"CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"}
    bounding = set(unit["Service"]["CapabilityBoundingSet"].split())
    assert ambient < bounding
    assert "CAP_NET_BROADCAST" in bounding, "else addresses of containers are read every 10 s only"
    assert unit["Service"]["NoNewPrivileges"] == "yes"


def test_commands_can_find_it_while_it_does_not_run(unit):
    assert str(NOTES.parent) == "/run/" + unit["Service"]["RuntimeDirectory"]
    assert unit["Service"]["RuntimeDirectoryPreserve"] == "yes"
