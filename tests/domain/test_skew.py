"""A clock that is wrong is named: of a host as a trouble, and with an error of TLS."""

import pytest

from aegisflux.domain import skew

# The control plane's clock minus that of the host.
OFFSETS = {
    0.0: "", 5.0: "", -29.0: "", 299.0: "", -31.0: "31 s ahead", -86_400.0: "86400 s ahead",
    301.0: "301 s behind", 1e9: "1000000000 s behind",
}  # fmt: skip


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_host_whose_clock_is_wrong_has_a_trouble(offset):
    found = skew.trouble(offset)
    assert OFFSETS[offset] in found
    assert bool(found) == bool(OFFSETS[offset])


ERRORS = {
    "[SSL: CERTIFICATE_VERIFY_FAILED] verify failed: certificate is not yet valid (_ssl.c:1006)": True,
    "[SSL: CERTIFICATE_VERIFY_FAILED] verify failed: certificate has expired (_ssl.c:1006)": True,
    "[SSL: CERTIFICATE_VERIFY_FAILED] verify failed: self-signed certificate": False,
    "[Errno 111] Connection refused": False,
    "": False,
}


@pytest.mark.parametrize("error", ERRORS)
def test_a_certificate_outside_of_its_time_names_the_clock(error):
    found = skew.explained(error, 1_000_000_000)
    assert found.startswith(error)
    assert ("the clock of this machine says 2001-09-09 01:46:40 UTC" in found) is ERRORS[error]
