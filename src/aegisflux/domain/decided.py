"""What lines of the audit log say of decisions: plans, changes of services that wait, rollouts.

Who made them, what they decide about and how far they are is read from the store and believed as their last
line says: whoever writes the store could make an author somebody else, or a gate another one. What a row says
in all is in its line as a digest (`made_text`); one of an older line was written into the log once (`ADOPT`).
"""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from aegisflux.domain.audit import Entry

ADOPT: Final = "audit.adopt"
NONE: Final = "none"
UNTOLD: Final = ""
"""The text of an object that some line is about, too old to say all of it."""
PLAN: Final = (
    "created_at", "created_by", "author", "proposal", "policy", "asked", "inventory_digest", "flows_digest",
    "digest", "inputs",
)  # fmt: skip
"""What a plan says beside its body, of which `digest` is: columns of its row."""
CHANGE: Final = (
    "id", "service_id", "name", "selectors", "host_labels", "created_at", "created_by", "author", "seen",
    "reason",
)  # fmt: skip
ROLLOUT: Final = ("plan", "created_at", "created_by", "run", "parts")
ENDED_DOUBTED: Final = "made of what was not believed"
"""In the place of a digest: nobody shall believe it later because its last step was written."""
_STAGES: Final = "rollout."
_NO_STAGE: Final = ("rollout.overtaken", "rollout.renewed")
_MADE: Final = "made sha256:"
_DIGITS: Final = 32
_encode = msgspec.json.Encoder(order="sorted").encode


def made_text(row: Mapping[str, Any], columns: Iterable[str]) -> str:
    """What these columns of a row say, as a digest. Of a rollout's run without the reason: a look changes it,
    and it decides nothing."""
    found = {name: _meant(name, row[name]) for name in columns}
    return f"{_MADE}{sha256(_encode(found)).hexdigest()[:_DIGITS]}"


def with_made(text: str, made: str) -> str:
    """A text of a line that also says of what it was made."""
    return f"{text}; {made}" if text else made


def plan_text(digest: str, approved_by: str | None, accepted: bool) -> str:
    """A plan, and who approved it."""
    if not approved_by:
        return digest
    return f"{digest}, approved by {approved_by}" + (", with all that it cuts" if accepted else "")


def digest_of_body(body: object) -> str:
    """The digest of a plan, by what was kept of it."""
    return f"sha256:{sha256(_encode(body)).hexdigest()}"


def plan_texts(row: Mapping[str, Any]) -> dict[str, str]:
    """What the row of a plan says, by object: by its contents, not by the digest that stands beside them."""
    name, digest = f"plan/{row['id']}", digest_of_body(row["body"])
    if digest != row["digest"]:
        digest = f"{digest} under the name {row['digest']}"
    found = {
        name: plan_text(digest, row["approved_by"], row["accepted"]),
        f"{name}/made": made_text(row, PLAN),
    }
    return found | ({f"{name}/approver": approver_text(row["approver"])} if row["approved_by"] else {})


def rollout_texts(row: Mapping[str, Any]) -> dict[str, str]:
    """What the row of a rollout says, by object."""
    name = f"rollout/{row['id']}"
    return {name: row["stage"], f"{name}/made": made_text(row, ROLLOUT)}


def approver_text(approver: str | None) -> str:
    """Whose token approved a plan that is approved; before tokens were kept nobody knows."""
    return approver or "unknown"


def decided(entry: Entry) -> Iterator[tuple[str, str]]:
    """The objects that a line decides, and the text of each from then on; `NONE`: there is none any more."""
    name, change = entry.object, f"{entry.object}/change"
    match entry.action:
        case "segment.plan":
            policy, made = _parted(entry.reason)
            yield name, entry.after
            yield f"{name}/policy", policy or UNTOLD
            yield f"{name}/made", made
        case "segment.approve":
            digest, _, key = entry.after.partition(" by ")
            yield name, plan_text(digest, entry.actor, bool(entry.reason))
            yield f"{name}/approver", key or UNTOLD
        case "service.ask":
            yield change, entry.after
            yield f"{change}/made", _parted(entry.reason)[1]
        case "service.put" if entry.reason.startswith("change "):
            yield from ((change, NONE), (f"{change}/made", NONE))
        case "service.discard" | "service.delete":
            yield from ((change, NONE), (f"{change}/made", NONE))
        case "rollout.renewed":
            yield f"{name}/made", _parted(entry.after)[1]
        case action if action.startswith(_STAGES) and action not in _NO_STAGE:
            yield name, action.removeprefix(_STAGES)
            yield f"{name}/made", _parted(entry.after)[1]


def believed_by(name: str) -> bool:
    """Whether a decision reads this object: it is kept beside the mark of the log."""
    kind, *rest = name.split("/")
    if kind == "service":
        return rest[1:] == ["change", "made"]
    return kind in ("plan", "rollout") and rest[1:] != ["policy"]


def _parted(text: str) -> tuple[str, str]:
    """A text of a line without what it was made of, and that."""
    for mark in (_MADE, ENDED_DOUBTED):
        before, found, made = text.rpartition(mark)
        if found:
            return before.removesuffix("; "), found + made
    return text, UNTOLD


def _meant(name: str, value: Any) -> Any:
    if name == "run" and isinstance(value, Mapping):
        return {key: one for key, one in value.items() if key != "reason"}
    return value
