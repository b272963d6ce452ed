"""`aegisflux service`: the register of services, and the changes of them that wait for an approver."""

from typing import Annotated, Any

from cyclopts import App, Parameter

from aegisflux.cli.client import call, number_of, trying
from aegisflux.cli.nouns import DryRun, Label, Service, labels_of, say_remarks
from aegisflux.cli.output import UNCHANGED, Output, columnar, say, show, show_effect
from aegisflux.domain.errors import Refused
from aegisflux.domain.selectors import never_matches

SERVICE = ("id", "name", "selectors", "host_labels")
service_app = App(name="service", help="The register of services.")


@service_app.command(name="list")
def list_services(*, output: Output = "table") -> None:
    """All services."""
    found = call("GET", "/api/v1/services")
    rows = [row | {"waits": (row.get("waits") or {}).get("id")} for row in found]
    show(rows if columnar(output) else found, output, (*SERVICE, "waits"))
    if any(row["waits"] for row in rows):
        say("changes wait for an approver: aegisflux service changes")
    names = {f"service {row['id']}": row["name"] for row in found}
    say_remarks(names, {f"service {row['id']}": row["host_labels"] for row in found})
    for row in found:
        for text in row["selectors"]:
            if why := never_matches(text):
                say(f"warning: service {row['id']} ({row['name']}): {text!r} selects nothing: expected {why}")
        if not row["host_labels"]:
            say(
                f"warning: service {row['id']} ({row['name']}) has no host_labels: no new allow of others "
                "names hosts that report it; give it host_labels"
            )


@service_app.command(name="put")
def put_service(
    name: str,
    *,
    service_id: Annotated[int | None, Parameter(name="--id")] = None,
    selector: Annotated[list[str] | None, Parameter(help="unit:GLOB or cgroup:GLOB", negative="")] = None,
    label: Label = None,
    dry_run: DryRun = False,
    output: Output = "json",
) -> None:
    """Register or change a service. Selectors and labels replace all that it has.

    Example: aegisflux service put web --id 101 --selector unit:web.service --label role=web
    """
    body = {"id": service_id, "name": name, "selectors": selector or [], "host_labels": labels_of(label)}
    found = call("POST", "/api/v1/services", body, trying(dry_run))
    show(found, output, SERVICE)
    if found.get("warning"):
        say(f"warning: {found['warning']}")
    if dry_run:
        _say_tried(found)
    if waits := found.get("waits"):
        _say_change(waits)


@service_app.command(name="changes")
def service_changes(*, limit: int = 100, output: Output = "table") -> None:
    """Changes of services that wait for an approver."""
    found = call("GET", "/api/v1/services/changes", None, {"limit": limit})
    rows = [row | {name: _hosts_moved(row.get(name)) for name in ("begin", "cease")} for row in found]
    columns = ("id", "service_id", "differs", "begin", "cease", "reason", "created_by", "stale")
    show(rows if columnar(output) else found, output, columns)
    for row in found:
        say(_how_to_end(row))


@service_app.command(name="approve")
def approve_change(
    service_id: Service,
    change: Annotated[int, Parameter(help="the number of the change")],
    *,
    dry_run: DryRun = False,
    output: Output = "json",
) -> None:
    """Make a change of a service that waits. With --dry-run: what it changes, and on which hosts.

    Example: aegisflux service approve web 7 --dry-run
    """
    path = f"/api/v1/services/{number_of(service_id)}/approve"
    found = call("POST", path, {"change": change}, trying(dry_run))
    if dry_run:
        say(UNCHANGED)
        if waits := found.get("waits"):
            _say_change(waits)
    show(found, output, SERVICE)


@service_app.command(name="discard")
def discard_change(
    service_id: Service,
    change: Annotated[int, Parameter(help="the number of the change")],
    *,
    dry_run: DryRun = False,
    output: Output = "table",
) -> None:
    """Drop a change of a service that waits.

    Example: aegisflux service discard web 7
    """
    path = f"/api/v1/services/{number_of(service_id)}/discard"
    show_effect(call("POST", path, {"change": change}, trying(dry_run)), output)


def _say_tried(found: dict[str, Any]) -> None:
    """What `service put --dry-run` would change, and whether it would wait."""
    if tried := found.get("tried"):
        for text in tried.get("differs", ()):
            say(f"would change: {text}")
        for name in ("begin", "cease"):
            say(f"hosts that would {name} to run the service: {_hosts_moved(tried.get(name))}")
        if tried.get("reason"):
            say(f"it would wait for an approver: {tried['reason']}")
    say(UNCHANGED)


def _say_change(change: dict[str, Any]) -> None:
    """What a change that waits changes, why it waits, and how it ends."""
    for text in change.get("differs", ()):
        say(f"change {change['id']}: {text}")
    for name in ("begin", "cease"):
        say(f"change {change['id']}: hosts that {name} to run the service: {_hosts_moved(change.get(name))}")
    say(f"change {change['id']} waits: {change.get('reason')}")
    say(_how_to_end(change))


def _how_to_end(change: dict[str, Any]) -> str:
    """How somebody ends a change that waits."""
    which = f"{change['service_id']} {change['id']}"
    if change.get("stale"):
        return (
            f"change {change['id']} cannot be approved: the service changed since it was asked for: "
            f"ask again, or aegisflux service discard {which}"
        )
    return f"to approve change {change['id']}: aegisflux service approve {which}"


def _hosts_moved(hosts: dict[str, Any] | None) -> str:
    """How many hosts, and the first by name: 3: web-1, web-2 and 1 more."""
    if not hosts or not hosts["count"]:
        return "none"
    more = hosts["count"] - len(hosts["hosts"])
    return f"{hosts['count']}: {', '.join(hosts['hosts'])}" + (f" and {more} more" if more > 0 else "")


@service_app.command
def health(
    service_id: Service,
    *,
    sick: Annotated[str | None, Parameter(help="what is wrong with it")] = None,
    well: Annotated[bool, Parameter(negative="", help="it is healthy again")] = False,
    host: Annotated[str | None, Parameter(help="only on this host")] = None,
    output: Output = "table",
) -> None:
    """Report what your monitoring sees: a rollout that enforces on an unhealthy service is rolled back
    automatically.

    Example: aegisflux service health 101 --sick "p99 is 3 s"
    """
    if (sick is None) == (not well):
        raise Refused("expected one of --sick and --well")
    said = {"healthy": well, "detail": sick or "", "host_id": host}
    show_effect(call("POST", f"/api/v1/services/{number_of(service_id)}/health", said), output)


@service_app.command(name="delete")
def delete_service(service_id: Service, *, dry_run: DryRun = False, output: Output = "table") -> None:
    """Delete a service that has no snapshots on hosts.

    Example: aegisflux service delete web --dry-run
    """
    show_effect(call("DELETE", f"/api/v1/services/{number_of(service_id)}", None, trying(dry_run)), output)
