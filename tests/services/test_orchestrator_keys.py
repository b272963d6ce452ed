"""The keys that sign, and what happens when their files are gone."""

from pathlib import Path

import pytest

from aegisflux.adapters.secrets.file import FileSecrets
from aegisflux.domain.errors import Unavailable
from aegisflux.services.orchestrator.keys import ENROLL, ROOT, Keys


def test_a_key_set_of_another_root_is_not_used(tmp_path: Path) -> None:
    """A root key that was lost and made anew would make every enrolled host refuse everything."""
    secrets = FileSecrets(tmp_path / "secrets")
    keys = Keys(secrets)
    first = keys.made("s1", 0)
    encoded = keys.signed_set(1, (first,))
    keys.use(encoded, first.id)
    secrets.path(ROOT).unlink()
    with pytest.raises(Unavailable, match="root-key: restore that file"):
        Keys(secrets).use(encoded, first.id)


def test_a_missing_signing_key_is_named(tmp_path: Path) -> None:
    secrets = FileSecrets(tmp_path / "secrets")
    keys = Keys(secrets)
    encoded = keys.signed_set(1, (keys.made("s1", 0),))
    secrets.path("snapshot-key-s1").unlink()
    with pytest.raises(Unavailable, match="snapshot-key-s1 is missing"):
        Keys(secrets).use(encoded, "s1")


def test_a_new_enrolment_key_knows_no_token_of_the_former(tmp_path: Path) -> None:
    """Deleting the file takes back all tokens that are not used yet."""
    secrets = FileSecrets(tmp_path / "secrets")
    given = Keys(secrets).enroll_secret()
    assert Keys(secrets).made_enroll(given)
    secrets.path(ENROLL).unlink()
    assert not Keys(secrets).made_enroll(given)
