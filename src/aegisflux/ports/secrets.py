"""Where keys are kept: small named blobs that only the owner may read."""

from collections.abc import Callable
from typing import Protocol


class Secrets(Protocol):
    """Named secrets. Names are `[a-z0-9][a-z0-9._-]*`; every method raises Unavailable when the keeper
    cannot be used.
    """

    def read(self, name: str) -> bytes | None:
        """The secret, or None when there is none of that name."""
        ...

    def write(self, name: str, value: bytes) -> None:
        """Keep the value durably, whole or not at all."""
        ...

    def remove(self, name: str) -> None:
        """Forget the secret durably, if there is one of that name."""
        ...

    def obtain(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The secret; made and kept first when there is none."""
        ...
