"""The roles of our own PostgreSQL: none of them is a superuser, and the superuser cannot connect.

The cluster's first user stays its superuser, as PostgreSQL wants it; it has neither login nor password nor a
line in `pg_hba.conf`. What only it may do is done before the server starts (`roles.sql`): roles are made, and
a database of before there were roles is handed to its owner. A role's password is a file of its own below
`passwords`; the server is told its verifier.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

DATABASE: Final = "aegisflux"
PREFIX: Final = "aegisflux_"
OWNER: Final = "owner"
# How many connections each may have: what its pools may open (`adapters/store`), and a few for commands. None
# can take another's, since the server has as many.
CONNECTIONS: Final[Mapping[str, int]] = {
    OWNER: 40,  # of a plain role for all too: every service opens its pools with it
    "orchestrator": 20,
    "ingest": 14,
    "enrich": 20,
    "segmenter": 18,
}
ROLES: Final = tuple(CONNECTIONS)
ITERATIONS: Final = 4096
MAKE: Final = """do $$ begin
    if not exists (select from pg_roles where rolname = '{name}') then create role {name}; end if;
end $$;

alter role {name} login inherit nosuperuser nocreatedb nocreaterole noreplication nobypassrls
    connection limit {connections} password '{secret}';

"""
HBA: Final = (
    "# Written by AegisFlux at each start. Who is not named here cannot connect.\n"
    f"local {DATABASE} {','.join(PREFIX + role for role in ROLES)} scram-sha-256\n"
)


def script(passwords: Mapping[str, str]) -> str:
    """What `postgres --single -j` does; `passwords` by role."""
    made = (
        MAKE.format(name=PREFIX + role, secret=verifier(word), connections=CONNECTIONS[role])
        for role, word in passwords.items()
    )
    return "".join(made) + _sql()


def mark(passwords: Mapping[str, str]) -> str:
    """Says that the script was done with these passwords: another one when either changes."""
    words = (MAKE, str(CONNECTIONS), _sql(), *(f"{role} {word}" for role, word in sorted(passwords.items())))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def verifier(password: str) -> str:
    """The password as the server stores it (SCRAM-SHA-256): no one can connect by it alone."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(ITERATIONS, *encoded)


def _sql() -> str:
    return files(__package__).joinpath("roles.sql").read_text()
