"""Random histories of a service: who does what to it, and what each host may be told to enforce then.

The oracle knows nothing of how the product remembers: it notes what was approved for which host when it was
posted, promoted or rolled out, and whether a host ever enforced.
"""

from collections import defaultdict

from aegisflux.domain import rollout as rollouts
from aegisflux.domain import undo
from aegisflux.domain.errors import Conflict, NotFound
from aegisflux.domain.roles import Principal, may, may_approve
from aegisflux.domain.rollout import Rollout
from aegisflux.domain.undo import Content, Past

HOSTS = ("a", "b", "c", "d", "e")
ACTORS = (
    Principal("olga", "operator"),
    Principal("otto", "operator"),
    Principal("anna", "approver"),
    Principal("root", "admin"),
)
RULES = ("web", "db", "all")
LEASE = 600


class Wrong(AssertionError):
    """A history after which a host enforces what was not approved for it, or what it never should."""


class History:
    """One service on up to five hosts. `choose(n)` gives a number below n."""

    def __init__(self, choose):
        self.choose, self.now = choose, 1000
        self.rollout, self.contents, self.authors = Rollout(7), {}, {}
        self.had, self.spared, self.running = defaultdict(tuple), set(), {one for one in HOSTS if choose(2)}
        self.carried, self.withheld = None, set()
        self.told = []
        # the oracle
        self.approved, self.for_all, self.open = defaultdict(set), set(), None
        self.enforced = defaultdict(set)
        self.withdrawn, self.observing = set(), False
        self.posters = defaultdict(set)

    # what is drawn

    def some(self, of, least=1):
        found = [one for one in of if self.choose(2)]
        return found if len(found) >= least else [of[self.choose(len(of))]]

    def play(self, steps):
        verbs = (
            *[self.post] * 3, *[self.promote] * 2, *[self.rollback] * 3, *[self.take_back] * 2,
            self.panic, self.withdraw, self.join, self.mark, self.begin, self.enforce, self.keep,
        )  # fmt: skip
        for _ in range(steps):
            verb, actor = verbs[self.choose(len(verbs))], ACTORS[self.choose(len(ACTORS))]
            before = {host: self.content(host) for host in HOSTS}
            ever = {host for host, versions in self.enforced.items() if versions}
            try:
                undoes = verb(actor)
            except (Conflict, NotFound):
                undoes = True
            self.now += 1
            self.check(before, ever, undoes)

    def content(self, host):
        given = self.rollout.hosts.get(host)
        return self.contents[given.version] if given else None

    def check(self, before, ever, undoes):
        """The invariants."""
        for host in HOSTS:
            content, was = self.content(host), before[host]
            if content is not None and host in self.withdrawn:
                raise Wrong(f"{host} has {content.rules} again, which was withdrawn from it: {self.told}")
            if content is None or not content.enforces:
                continue
            if self.observing:
                raise Wrong(f"{host} enforces {content.rules} after a panic of all: {self.told}")
            self.enforced[host].add(self.rollout.hosts[host].version)
            if content.rules not in self.approved[host] | self.for_all:
                raise Wrong(f"{host} enforces {content.rules}, which nobody approved for it: {self.told}")
            if undoes and (was is None or not was.enforces) and host not in ever:
                raise Wrong(f"undoing made {host} enforce, which never did: {self.told}")
            if host in self.spared and was != content:
                raise Wrong(f"{host}, on which nothing is enforced, enforces {content.rules}: {self.told}")

    # what people do; each gives whether it undoes

    def stored(self, actor):
        version = self.rollout.latest + 1
        mode = "enforce" if self.choose(3) else "observe"
        content = Content(f"{RULES[self.choose(len(RULES))]} {mode}", mode == "enforce")
        self.contents[version], self.authors[version] = content, actor.name
        self.posters[content.rules].add(actor.name)
        return version, content

    def copied(self, source, version, content):
        """What a version brings back stays its author's."""
        self.contents[version], self.authors[version] = content, self.authors[source]
        self.posters[content.rules].add(self.authors[source])

    def guarded(self, hosts, content):
        if content.enforces and self.spared & set(hosts):
            raise Conflict("never_block")

    def given(self, hosts, version):
        """Somebody gave hosts a version, who could do so."""
        self.observing = False
        self.withheld -= set(hosts)
        self.withdrawn -= set(hosts)
        for host in hosts:
            self.had[host] = undo.remembered(self.had[host], version)

    def post(self, actor):
        version, content = self.stored(actor)
        targets = None if self.choose(2) else self.some(HOSTS)
        chosen = sorted(self.running) if targets is None else targets
        self.guarded(chosen, content)
        self.told.append(f"{actor.name} posts {version}={content.rules} to {targets or 'all'}")
        self.rollout = rollouts.post(self.rollout, version, self.now + LEASE, targets, self.running).rollout
        self.given(chosen, version)
        for host in chosen:
            self.approved[host].add(content.rules)
        self.open = content.rules if targets is None else self.open
        return False

    def promote(self, actor):
        version = rollouts.promotable(
            self.rollout, None if self.choose(2) else 1 + self.choose(self.rollout.latest + 1)
        )
        content, hosts = self.contents[version], {*self.running, *self.rollout.hosts}
        if not may(actor.role, "approver") or not may_approve(actor, None, self.authors[version]):
            return False
        self.guarded(hosts, content)
        self.told.append(f"{actor.name} promotes {version}")
        if self.posters[content.rules] == {actor.name} and actor.role != "admin":
            raise Wrong(f"{actor.name} approved what nobody else posted: {self.told}")
        self.rollout = rollouts.promote(self.rollout, version, self.now + LEASE, self.running).rollout
        self.given(hosts, version)
        self.for_all.add(content.rules)
        self.open = None
        return False

    def past(self):
        promoted = frozenset(self.contents[version].rules for version in self.rollout.promotions)
        spared, withheld = frozenset(self.spared), frozenset(self.withheld)
        return Past(dict(self.contents), promoted, dict(self.had), spared, withheld)

    def rollback(self, actor):
        wish = None if self.choose(2) else 1 + self.choose(self.rollout.latest + 1)
        source, version = rollouts.rollback_target(self.rollout, wish), self.rollout.latest + 1
        self.told.append(f"{actor.name} rolls back to {source} as {version}")
        undone = undo.roll_back(self.rollout, self.past(), source, version, self.now + LEASE, self.running)
        self.copied(source, version, self.contents[source])
        self.rollout, self.open, self.observing = undone.step.rollout, None, False
        return True

    def panic(self, actor):
        host = HOSTS[self.choose(len(HOSTS))] if self.choose(2) else None
        if host is None:
            if self.carried is not None and self.rollout.stable != self.carried[0]:
                self.take_back(actor)  # rollouts that are on their way are ended first
            self.observing = True
        blocking = (v for v in undo.could_have(self.rollout, self.now, host) if self.contents[v].enforces)
        source, version = next(blocking, None), self.rollout.latest + 1
        if source is None:
            return True
        rules = self.contents[source].rules.replace("enforce", "observe")
        self.copied(source, version, Content(rules, False))
        self.told.append(f"{actor.name} panics {host or 'all'} as {version}")
        running = self.running - self.withheld
        self.rollout = undo.observe(self.rollout, version, self.now + LEASE, running, host).rollout
        self.open = rules if self.rollout.open_version == version else self.open
        return True

    def withdraw(self, actor):
        targets = None if self.choose(2) else self.some(HOSTS)
        self.told.append(f"{actor.name} withdraws from {targets or 'all'}")
        self.rollout = rollouts.withdraw(self.rollout, targets).rollout
        self.withheld |= set(targets or ())
        self.withdrawn |= set(targets or ())
        self.open = self.open if targets else None
        return True

    def join(self, _actor):
        hosts = [host for host in self.some(HOSTS) if host not in self.spared | self.withheld]
        self.running.update(hosts)
        step = rollouts.joined(self.rollout, hosts, self.now, LEASE)
        self.told.append(f"{hosts} join: {step.changed}")
        self.rollout = step.rollout
        for host in step.changed:
            self.had[host] = undo.remembered(self.had[host], self.rollout.hosts[host].version)
            self.approved[host] |= {self.open} - {None}
        return False

    def mark(self, _actor):
        host = HOSTS[self.choose(len(HOSTS))]
        (self.spared.discard if host in self.spared else self.spared.add)(host)
        self.told.append(f"{host} is {'marked' if host in self.spared else 'not marked'}")
        return True

    # a rollout: approved by its plan, which guardrails passed

    def begin(self, actor):
        if self.carried is not None:
            return True
        replaces = self.rollout.stable or max((g.version for g in self.rollout.hosts.values()), default=None)
        version, content = self.stored(actor)
        hosts = [host for host in sorted(self.running) if host not in self.spared]
        self.rollout = rollouts.replace(self.rollout, latest=version)
        self.carried = version, replaces, hosts
        self.told.append(f"a rollout of {version}={content.rules} begins, instead of {replaces}")
        return True

    def enforce(self, _actor):
        if self.carried is None or self.rollout.latest != self.carried[0]:
            return True
        version, _, hosts = self.carried
        chosen = [host for host in self.some(HOSTS) if host in hosts and host not in self.spared]
        self.told.append(f"it enforces on {chosen}")
        self.rollout = rollouts.post(self.rollout, version, self.now + LEASE, chosen, chosen).rollout
        self.given(chosen, version)
        for host in chosen:
            self.approved[host].add(self.contents[version].rules)
        return False

    def keep(self, _actor):
        if self.carried is None or self.rollout.latest != self.carried[0]:
            return True
        version = self.carried[0]
        self.told.append("it is promoted")
        step = rollouts.promote(
            self.rollout, version, self.now + LEASE, self.running - self.spared, self.spared
        )
        self.given(step.changed, version)
        self.rollout = step.rollout
        self.for_all.add(self.contents[version].rules)
        self.open = None
        return False

    def take_back(self, _actor):
        if self.carried is None:
            return True
        version, replaces, _ = self.carried
        mine, promoted, past = self.rollout.on(version), self.rollout.stable == version, self.past()
        back = undo.returns(past, mine, replaces, frozenset({version}))
        sources = sorted({one for one in back.values() if one is not None})
        copies = {one: self.rollout.latest + 1 + n for n, one in enumerate(sources)}
        self.told.append(f"it takes itself back: {back}")
        step = undo.take_back(self.rollout, past, back, copies, self.now + LEASE, replaces, promoted)
        for source, copy in copies.items():
            self.copied(source, copy, self.contents[source])
        self.rollout, self.carried, self.observing = step.rollout, None, False
        for host in mine:
            content = self.content(host)
            others = self.enforced[host] - {version}
            if content is not None and content.enforces and not others:
                raise Wrong(f"{host} enforces, which it did not before the rollout: {self.told}")
        return True


def play(choose, steps=12):
    """Play one history; raises Wrong."""
    History(choose).play(steps)
