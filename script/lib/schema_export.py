"""schemas/mapsnapshot.json: the public JSON Schema (draft-07) of a MapSnapshot, exported from the types."""

import json
from typing import Any

import msgspec

from aegisflux.domain.snapshot import MAX_ENTRIES, MapSnapshot

# What a type cannot say. A field without a sentence, or a sentence without a field, fails.
FIELDS = {
    "version": "Revision of this service's snapshot; must rise. The same version with the same content is"
    " accepted again; a lower one, or the same with other content, is refused (409).",
    "service_id": "The service that it governs; the orchestrator's service registry owns the numbers.",
    "ttl_seconds": "The lease: after it, on the host's own clock, `on_expiry` holds, whether or not an agent"
    " or a control plane is alive.",
    "edges": "Egress allow-list.",
    "allow_cidrs": "Peers allowed in both directions; `port` is the port that the initiator addresses"
    " (remote for egress, local for ingress).",
    "meta": "Free; carried along, never interpreted by the datapath. At most 64 KiB and 16 levels.",
    "ingress": "Ingress allow-list. Absent: ingress is not restricted. []: none but `allow_cidrs`.",
    "deny": "Safeguards: beat every allow, of any prefix length.",
    "mode": "`observe` judges and reports, and blocks nothing.",
    "on_expiry": "What holds after the lease: no enforcement (`open`), or only the failsafe (`closed`).",
    "established": "Live flows that the new snapshot would not allow: left to end (`keep`), or cut (`cut`).",
}
ENTRY_FIELDS = {
    "proto": "`any` with port 0 is every IP protocol, ICMP included; `any` with a port is TCP and UDP on it.",
    "direction": "Who initiates: the service (`egress`), the peer (`ingress`), or either (`both`).",
}


def mapsnapshot() -> dict[str, Any]:
    """The schema as a value; raises KeyError where a field has no sentence."""
    _, parts = msgspec.json.schema_components([MapSnapshot], ref_template="#/definitions/{name}")
    body = parts.pop("MapSnapshot")
    if unknown := FIELDS.keys() - body["properties"].keys():
        raise KeyError(f"sentences for fields that do not exist: {sorted(unknown)}")
    for name, field in body["properties"].items():
        field["description"] = FIELDS[name]
        if field.get("type") == "array":
            field["maxItems"] = MAX_ENTRIES
    for part in parts.values():
        for name, field in part["properties"].items():
            field.setdefault("description", ENTRY_FIELDS.get(name))
            if field["description"] is None:
                raise KeyError(f"{part['title']}.{name}: no sentence")
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "urn:aegisflux:schema:mapsnapshot:1",
        **body,
        "definitions": parts,
    }


def mapsnapshot_text() -> str:
    """The file's text."""
    return json.dumps(mapsnapshot(), indent=2) + "\n"
