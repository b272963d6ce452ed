"""Whether the store has what the audit log says: who may do what, who is which host, what runs where.

Each object that gives a right has one text, made from its row, and one made from the lines about it; the two
are compared. A line of before this was compared may say too little: what the store had then was written into
the log once (`audit.adopt`), so that every change since is told.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from aegisflux.domain.audit import Entry
from aegisflux.domain.rights import ISSUE, REVOKE, SEAL, Rights, plan_text
from aegisflux.domain.rollout import MAX_PROMOTIONS

ADOPT: Final = "audit.adopt"
NONE: Final = "none"
UNTOLD: Final = ""
"""The text of an object that some line is about, too old to say all of it."""
_STAGES: Final = "rollout."
_NO_STAGE: Final = ("rollout.overtaken", "rollout.renewed")


class Said:
    """What lines say, followed one by one.

    texts:    of each object that there is to be
    versions: the digests that were said of each version of a service
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.versions: dict[str, set[str]] = {}
        self._tokens = Rights()

    def take(self, entry: Entry) -> None:
        """Follow a line."""
        if entry.action in (ISSUE, SEAL, REVOKE):
            self._tokens.take(entry)
        elif entry.action == ADOPT:
            self._adopted(entry)
        elif entry.action.startswith(_STAGES) and entry.action not in _NO_STAGE:
            self.texts[entry.object] = entry.action.removeprefix(_STAGES)
        elif (follow := _FOLLOW.get(entry.action)) is not None:
            follow(self, entry)

    def all(self) -> dict[str, str]:
        """The text of each object, tokens among them."""
        return self.texts | {f"token/{number}": text for number, text in self._tokens.live.items()}

    def _adopted(self, entry: Entry) -> None:
        if "/version/" in entry.object:
            self.versions.setdefault(entry.object, set()).add(entry.after)
        else:
            self.texts[entry.object] = entry.after

    def _version(self, entry: Entry) -> None:
        if entry.after:
            self.versions.setdefault(entry.object, set()).add(entry.after)

    def _stable(self, entry: Entry) -> None:
        self._put(f"{entry.object}/stable", entry.after)
        if entry.after != NONE:
            name = f"{entry.object}/promotions"
            before = self.texts[name].split(",") if self.texts.get(name) else []
            self.texts[name] = ",".join([*before, entry.after][-MAX_PROMOTIONS:])

    def _defined(self, entry: Entry) -> None:
        self.texts[entry.object] = entry.after
        if entry.reason.startswith("change "):
            self._answered(entry)

    def _asked(self, entry: Entry) -> None:
        self._put(f"{entry.object}/change", entry.after)

    def _answered(self, entry: Entry) -> None:
        self.texts.pop(f"{entry.object}/change", None)

    def _registered(self, entry: Entry) -> None:
        self.texts[entry.object] = f"{entry.after} [] {{}}"

    def _deleted(self, entry: Entry) -> None:
        for known in (self.texts, self.versions):
            gone = [name for name in known if name == entry.object or name.startswith(f"{entry.object}/")]
            for name in gone:
                del known[name]

    def _enrolled(self, entry: Entry) -> None:
        if entry.reason == "repeated":
            return
        self.texts[entry.object] = entry.after if " " in entry.after else UNTOLD
        if self.texts.get(token := f"enrolment/{entry.before}"):
            self.texts[token] += f", used by {entry.object.removeprefix('host/')}"

    def _relabelled(self, entry: Entry) -> None:
        key, space, _ = self.texts.get(entry.object, "").partition(" ")
        self.texts[entry.object] = f"{key} {entry.after}" if space and entry.after[1:2] in '"}' else UNTOLD

    def _released(self, entry: Entry) -> None:
        self.texts.pop(entry.object, None)

    def _enrolment(self, entry: Entry) -> None:
        number, _, text = entry.after.partition(" ")
        self.texts[f"enrolment/{number}"] = text or UNTOLD

    def _suspected(self, entry: Entry) -> None:
        word, _, finding = entry.after.partition(", by finding ")
        name = f"{entry.object}/suspicion/{finding}"
        self._put(name, suspicion_text(entry.reason) if word == "suspicious" else NONE)

    def _planned(self, entry: Entry) -> None:
        self.texts[entry.object] = entry.after
        self.texts[f"{entry.object}/policy"] = entry.reason or UNTOLD

    def _approved(self, entry: Entry) -> None:
        self.texts[entry.object] = plan_text(entry.after, entry.actor, bool(entry.reason))

    def _keys(self, entry: Entry) -> None:
        self.texts[entry.object] = entry.before if entry.action == "keys.add" else entry.after

    def _put(self, name: str, text: str) -> None:
        if text == NONE:
            self.texts.pop(name, None)
        else:
            self.texts[name] = text


_FOLLOW: Final[Mapping[str, Callable[[Said, Entry], None]]] = {
    "snapshot.post": Said._version,
    "snapshot.offer": Said._version,
    "snapshot.rollback": Said._version,
    "snapshot.store": Said._version,
    "service.put": Said._defined,
    "service.ask": Said._asked,
    "service.discard": Said._answered,
    "service.register": Said._registered,
    "service.delete": Said._deleted,
    "service.stable": Said._stable,
    "host.enroll": Said._enrolled,
    "host.relabel": Said._relabelled,
    "host.release": Said._released,
    "host.token": Said._enrolment,
    "host.suspicion": Said._suspected,
    "segment.plan": Said._planned,
    "segment.approve": Said._approved,
    "keys.first": Said._keys,
    "keys.add": Said._keys,
    "keys.switch": Said._keys,
    "keys.remove": Said._keys,
    "keys.replace": Said._keys,
}


def said(entries: Iterable[Entry]) -> Said:
    """What all these lines say."""
    found = Said()
    for entry in entries:
        found.take(entry)
    return found


def differences(log: Said, store: Mapping[str, str]) -> Iterator[str]:
    """Where the two do not agree, in words, by object."""
    known = log.all()
    for name in sorted({*known, *store, *log.versions}):
        if name in log.versions:
            yield from _of_version(name, log.versions[name], store.get(name))
        elif name not in known:
            yield f"{name}: the store has {store[name]}; no line of the audit log gives it"
        elif name not in store:
            yield f"{name}: the audit log says {known[name] or 'that it is there'}; the store has none"
        elif known[name] not in (store[name], UNTOLD):
            yield f"{name}: the audit log says {known[name]}; the store has {store[name]}"


def untold(log: Said, store: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What the store has and no line says in full: the objects and their texts, to be adopted. Tokens are
    sealed instead."""
    known = log.all()
    for name in sorted(store):
        if name not in log.versions and known.get(name, UNTOLD) == UNTOLD and not name.startswith("token/"):
            yield name, store[name]


def _of_version(name: str, digests: set[str], found: str | None) -> Iterator[str]:
    if found not in digests:
        yield f"{name}: the audit log says {' or '.join(sorted(digests))}; the store has {found or NONE}"


def suspicion_text(detail: str) -> str:
    """What is said of a host that is suspected."""
    return f"suspected: {detail}"
