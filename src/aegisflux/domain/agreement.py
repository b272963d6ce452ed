"""Whether the store has what the audit log says: who may do what, who is which host, what runs where.

Each object that gives a right has one text, made from its row, and one made from the lines about it; the two
are compared. A line of before this was compared may say too little: what the store had then was written into
the log once (`audit.adopt`), so that every change since is told.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from aegisflux.domain.audit import Entry, Line
from aegisflux.domain.decided import ADOPT, NONE, UNTOLD, decided
from aegisflux.domain.rights import ISSUE, REVOKE, ROWS, SEAL, Rights
from aegisflux.domain.rollout import MAX_PROMOTIONS


class Said:
    """What lines say, followed one by one.

    texts:    of each object that there is to be
    versions: the digests that were said of each version of a service
    lines:    the number of the last line about each object
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.versions: dict[str, set[str]] = {}
        self.lines: dict[str, int] = {}
        self._tokens = Rights()

    def take(self, entry: Entry, seq: int = 0) -> None:
        """Follow a line, which has this number."""
        self.lines[entry.object] = seq
        if entry.action in (ISSUE, SEAL, REVOKE):
            self._tokens.take(entry)
        elif entry.action == ADOPT:
            self._adopted(entry)
        elif (follow := _FOLLOW.get(entry.action)) is not None:
            follow(self, entry)
        elif entry.action.startswith("rollout.") and _is_step(entry):
            self._stepped(entry)
        for name, text in decided(entry):
            self._put(name, text)

    def line_of(self, name: str) -> str:
        """The last line about an object, or about what it is a part of, in words; empty: there is none."""
        while name and name not in self.lines:
            name = name.rpartition("/")[0]
        return f" (line {self.lines[name]})" if self.lines.get(name) else ""

    def all(self) -> dict[str, str]:
        """The text of each object, tokens among them."""
        return self.texts | {f"token/{number}": text for number, text in self._tokens.live.items()}

    def _adopted(self, entry: Entry) -> None:
        if "/version/" in entry.object:
            self._version(entry)
        elif entry.object != ROWS:
            self.texts[entry.object] = entry.after

    def _version(self, entry: Entry) -> None:
        if entry.after:
            self.versions.setdefault(entry.object, set()).add(entry.after)
            service, _, number = entry.object.partition("/version/")
            newest = int(self.texts.get(f"{service}/latest", "0"))
            self.texts[f"{service}/latest"] = str(max(newest, int(number)))

    def _open(self, entry: Entry) -> None:
        self._put(f"{entry.object}/open", entry.after)

    def _withheld(self, entry: Entry) -> None:
        self._put(f"{entry.object}/withheld", entry.after)

    def _stable(self, entry: Entry) -> None:
        self._put(f"{entry.object}/stable", entry.after)
        if entry.after != NONE:
            name = f"{entry.object}/promotions"
            before = self.texts[name].split(",") if self.texts.get(name) else []
            self.texts[name] = ",".join([*before, entry.after][-MAX_PROMOTIONS:])

    def _defined(self, entry: Entry) -> None:
        self.texts[entry.object] = entry.after

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

    def _health(self, entry: Entry) -> None:
        service, _, host = entry.object.partition("/host/")
        self.texts[f"{service}/health/{host}"] = health_text(entry.after == "healthy", entry.reason)

    def _stepped(self, entry: Entry) -> None:
        name = f"{entry.object}/steps"
        self.texts[name] = str(int(self.texts.get(name, "0")) + 1)

    def _keys(self, entry: Entry) -> None:
        under_way = entry.action.removeprefix("keys.") in ("add", "switch")
        rotation = rotation_text(entry.action, entry.before, entry.after)
        self._put("keys/rotation", rotation if under_way else NONE)
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
    "service.health": Said._health,
    "service.register": Said._registered,
    "service.delete": Said._deleted,
    "service.stable": Said._stable,
    "service.open": Said._open,
    "service.withheld": Said._withheld,
    "host.enroll": Said._enrolled,
    "host.relabel": Said._relabelled,
    "host.release": Said._released,
    "host.token": Said._enrolment,
    "host.suspicion": Said._suspected,
    "keys.first": Said._keys,
    "keys.add": Said._keys,
    "keys.switch": Said._keys,
    "keys.remove": Said._keys,
    "keys.replace": Said._keys,
}


def said(lines: Iterable[Line]) -> Said:
    """What all these lines say."""
    found = Said()
    for line in lines:
        found.take(line.entry, line.seq)
    return found


def differences(log: Said, store: Mapping[str, str]) -> Iterator[str]:
    """Where the two do not agree, in words, by object, with the last line about it."""
    known = log.all()
    for name in sorted({*known, *store, *log.versions}):
        line = log.line_of(name)
        if name in log.versions:
            yield from _of_version(name, log.versions[name], store.get(name), line)
        elif name not in known:
            yield f"{name}: the store has {store[name]}; no line of the audit log gives it"
        elif name not in store:
            yield f"{name}: the audit log{line} says {known[name] or 'that it is there'}; the store has none"
        elif known[name] not in (store[name], UNTOLD):
            yield f"{name}: the audit log{line} says {known[name]}; the store has {store[name]}"


def untold(log: Said, store: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What the store has and no line says in full: the objects and their texts, to be adopted. Tokens are
    sealed instead."""
    known = log.all()
    for name in sorted(store):
        if name not in log.versions and known.get(name, UNTOLD) == UNTOLD and not name.startswith("token/"):
            yield name, store[name]


def _of_version(name: str, digests: set[str], found: str | None, line: str) -> Iterator[str]:
    if found not in digests:
        said_to_be = " or ".join(sorted(digests))
        yield f"{name}: the audit log{line} says {said_to_be}; the store has {found or NONE}"


def _is_step(entry: Entry) -> bool:
    """Whether a line about a rollout stands beside a step of its history."""
    return entry.action == "rollout.renewed" or entry.after.startswith("turn ")


def health_text(healthy: bool, detail: str) -> str:
    """What was said last of a service, or of it on a host."""
    return f"{'healthy' if healthy else 'sick'}: {detail}"


def rotation_text(phase: str, old: str, new: str) -> str:
    """A rotation of keys that is under way; `phase`: as in the store, or the action that led there."""
    word = {"keys.add": "added", "keys.switch": "switched"}.get(phase, phase)
    return f"{word}: {new} in place of {old}"


def suspicion_text(detail: str) -> str:
    """What is said of a host that is suspected."""
    return f"suspected: {detail}"
