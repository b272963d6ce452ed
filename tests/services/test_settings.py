"""Settings of the control plane: file, environment, command line; refused by name."""

import pytest

from aegisflux import settings
from aegisflux.domain.errors import Invalid


def test_the_command_line_beats_the_environment_and_that_the_file(tmp_path):
    file = tmp_path / "aegisflux.toml"
    file.write_text('data_dir = "/a"\nport_base = 9000\nconfirm_seconds = 5\n[leases]\nmax_seconds = 20\n')
    environ = {
        "AEGISFLUX_DATA_DIR": "/b",
        "AEGISFLUX_PORT_BASE": "9100",
        "AEGISFLUX_LEASES_MAX_SECONDS": "30",
    }
    found = settings.load(file, environ, data_dir="/c", port_base=None)
    assert (found.data_dir, found.api_port, found.nats_port) == ("/c", 9100, 9101)
    assert (found.confirm_seconds, found.leases.max_seconds) == (5, 30)


def test_defaults():
    found = settings.load(None, {})
    assert (found.api_port, found.nats_port, found.url) == (8081, 4222, "http://127.0.0.1:8081")
    assert found.enroll_url == found.url


def test_outside_addresses_have_tls():
    several = {"AEGISFLUX_LISTEN": "127.0.0.1, 192.0.2.7,2001:db8::1", "AEGISFLUX_NATS_URLS": "nats://a:1"}
    found = settings.load(None, several)
    assert found.outside == ("192.0.2.7", "2001:db8::1")
    assert found.enroll_url == "https://192.0.2.7:8081"


# What `listen` says, where our own NATS listens, and how programs of this machine reach it.
NATS_PLACES = {
    "": ("127.0.0.1", "127.0.0.1"),
    "127.0.0.1": ("127.0.0.1", "127.0.0.1"),
    "127.0.0.2": ("127.0.0.2", "127.0.0.2"),
    "127.0.0.1,127.0.0.2,127.0.0.2": ("127.0.0.2", "127.0.0.2"),
    "::1": ("::1", "::1"),
    "192.0.2.7": ("192.0.2.7", "192.0.2.7"),
    "2001:db8::1": ("2001:db8::1", "2001:db8::1"),
    "0.0.0.0": ("0.0.0.0", "127.0.0.1"),
    "::": ("::", "127.0.0.1"),
    "192.0.2.7,0.0.0.0": ("0.0.0.0", "127.0.0.1"),
    "192.0.2.7,::,2001:db8::1": ("::", "127.0.0.1"),
    "0.0.0.0,::": ("::", "127.0.0.1"),
}


@pytest.mark.parametrize("listen", NATS_PLACES)
def test_nats_listens_where_the_settings_say_and_nowhere_else(listen):
    found = settings.load(None, {"AEGISFLUX_LISTEN": listen, "AEGISFLUX_ADVERTISE": "control.example"})
    assert (found.nats_host, found.nats_near) == NATS_PLACES[listen]


SEVERAL = ["192.0.2.7,192.0.2.8", "127.0.0.2,::1", "0.0.0.0,::1", "192.0.2.7,2001:db8::1"]


@pytest.mark.parametrize("listen", SEVERAL)
def test_addresses_that_one_nats_cannot_have_are_refused(listen):
    with pytest.raises(Invalid, match=r"listen: expected one address, or 0\.0\.0\.0 .*nats_urls"):
        settings.load(None, {"AEGISFLUX_LISTEN": listen})
    settings.load(None, {"AEGISFLUX_LISTEN": listen, "AEGISFLUX_NATS_URLS": "nats://192.0.2.9:4222"})


@pytest.mark.parametrize("listen", ["0.0.0.0", "::", "0.0.0.0,::", "127.0.0.1,0.0.0.0", "0:0:0:0:0:0:0:0"])
@pytest.mark.parametrize("advertise", ["", "0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_an_address_that_no_host_can_connect_to_is_not_advertised(listen, advertise):
    """No token and no certificate names 0.0.0.0: a host that enrols there would ask itself."""
    with pytest.raises(Invalid, match=r"^advertise: expected the name or address that hosts reach us by"):
        settings.load(None, {"AEGISFLUX_LISTEN": listen, "AEGISFLUX_ADVERTISE": advertise})


def test_a_command_goes_on_without_what_is_wrong_in_advertise():
    said = []
    for environ in ({"AEGISFLUX_LISTEN": "0.0.0.0"}, {"AEGISFLUX_ADVERTISE": "https://a"}):
        settings.load(None, environ, said.append)
    assert [error.path for error in said] == ["advertise", "advertise"]


@pytest.mark.parametrize(
    ("listen", "advertise", "url"),
    [
        ("0.0.0.0", "control.example", "https://control.example:8081"),
        ("::", "2001:db8::7", "https://[2001:db8::7]:8081"),
        ("192.0.2.7,0.0.0.0", "", "https://192.0.2.7:8081"),
        ("0.0.0.0,192.0.2.7", "", "https://192.0.2.7:8081"),
        ("192.0.2.7", "", "https://192.0.2.7:8081"),
        ("", "", "http://127.0.0.1:8081"),
        ("", "localhost", "http://127.0.0.1:8081"),
    ],
)
def test_hosts_reach_us_by_a_name_or_an_address_of_ours(listen, advertise, url):
    environ = {"AEGISFLUX_LISTEN": listen, "AEGISFLUX_ADVERTISE": advertise}
    assert settings.load(None, environ).enroll_url == url


@pytest.mark.parametrize(
    "name",
    ["https://a", "a:8081", "[::1]", "a/b", "a b", "10.0.0.999", "-a", "a..b", "a" * 64, "\u202ea", "*.a"],
)
def test_what_is_no_name_and_no_address_is_not_advertised(name):
    with pytest.raises(Invalid, match=r"^advertise: expected a DNS name such as"):
        settings.load(None, {"AEGISFLUX_ADVERTISE": name})


def test_settings_survive_the_way_through_an_environment():
    given = settings.load(
        None, {}, data_dir="/x", listen=("192.0.2.7",), nats_urls=("nats://a:1", "nats://b:2")
    )
    assert settings.load(None, given.environment()) == given


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("unknown = 1", "unknown"),
        ('port_base = "x"', "port_base"),
        ('log_level = "loud"', "log_level"),
        ('listen = ["nowhere"]', "listen"),
        ("port_base = 70000", "port_base"),
        ("[leases]\nmax = 1", "leases"),
        ("= 1", "toml"),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, text, named):
    file = tmp_path / "aegisflux.toml"
    file.write_text(text)
    with pytest.raises(Invalid, match=named):
        settings.load(file, {})
