"""`aegisflux token`: API tokens, by their number or their name."""

import asyncio
from typing import Annotated, Any, Final, Literal

from cyclopts import App, Parameter

from aegisflux.cli.client import call, quoted, trying
from aegisflux.cli.control import Config, DataDir, known
from aegisflux.cli.nouns import DryRun
from aegisflux.cli.output import Output, SecretOutput, line, say, show, show_effect
from aegisflux.domain.errors import Invalid
from aegisflux.domain.names import close

LIST: Final = ("id", "name", "role", "host_id", "expires_at", "last_used", "revoked_at")
NEW: Final = ("id", "name", "role", "host_id", "expires_at", "token")
token_app = App(name="token", help="API tokens.")


@token_app.command(name="list")
def list_tokens(*, output: Output = "table") -> None:
    """API tokens; what is wrong with one is a warning on stderr."""
    found: Any = call("GET", "/api/v1/tokens")
    show(found, output, LIST)
    for one in found:
        for trouble in one.get("troubles", ()):
            say(f"warning: token {one['id']}: {trouble}")


@token_app.command(name="create")
def create_token(
    name: str,
    role: Literal["source", "viewer", "operator", "approver", "admin"],
    *,
    host_id: Annotated[str | None, Parameter(help="whose events a token of the role source may post")] = None,
    ttl_seconds: Annotated[int | None, Parameter(help="when it ends; by default not until revoked")] = None,
    output: SecretOutput = None,
) -> None:
    """Make an API token and print it: a secret. Its id is printed on stderr. One of the role source posts the
    events of one host.

    Example: aegisflux token create falco-web-1 source --host-id web-1
    """
    body = {"name": name, "role": role, "ttl_seconds": ttl_seconds, "host_id": host_id}
    made = call("POST", "/api/v1/tokens", body)
    say(
        f"token {made['id']} ({made['name']}, role {made['role']}); "
        f"to end it: aegisflux token revoke {made['id']}"
    )
    if output is None:
        line(made["token"])
    else:
        show(made, output, NEW)


@token_app.command(name="revoke")
def revoke_token(
    token: Annotated[str, Parameter(help="the id or the name of a token, as `token list` shows them")],
    *,
    force: Annotated[bool, Parameter(help="also the last one of an admin", negative="")] = False,
    dry_run: DryRun = False,
    output: Output = "table",
) -> None:
    """End a token.

    Example: aegisflux token revoke falco-web-1 --dry-run
    """
    query = trying(dry_run) | ({"force": "true"} if force else {})
    show_effect(call("DELETE", f"/api/v1/tokens/{quoted(_id_of(token))}", None, query), output)


@token_app.command(name="replace")
def replace_token(
    role: Literal["admin", "viewer"],
    *,
    dry_run: DryRun = False,
    output: Output = "table",
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Make a new token of the control plane's own admin or viewer, and end the one before.

    Run it as root on the control plane, for example when no admin's token is left. It needs no token. The new
    one is in `secrets/admin-token` or `secrets/viewer-token` of the data folder.

    Example: aegisflux token replace admin
    """
    from msgspec import to_builtins

    from aegisflux import maintenance

    effect, path = asyncio.run(maintenance.replace_token(known(config, data_dir), role, dry_run))
    show_effect(to_builtins(effect), output)
    if not dry_run:
        say(f"the new token of the role {role} is in {path}")


def _id_of(token: str) -> str:
    """The id of a token that is named by it or by its name, which one living token has; raises Invalid."""
    living = [row for row in call("GET", "/api/v1/tokens") if row["revoked_at"] is None]
    for names in ({row["id"]: row["id"] for row in living}, {row["name"]: row["id"] for row in living}):
        if token in names:
            return str(names[token])
    hint = close(token, [row["name"] for row in living]) or "; aegisflux token list shows them"
    raise Invalid("TOKEN", f"the id or the name of a token that is not revoked{hint}", token)
