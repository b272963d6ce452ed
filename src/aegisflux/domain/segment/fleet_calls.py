"""Who calls whom in the synthetic fleets of `fleets`: tiers of applications, shared infrastructure, rates."""

from typing import Final, Literal, NamedTuple

from aegisflux.domain.net import TCP, UDP

Pattern = Literal["mesh", "sticky", "leader", "weekly", "monthly"]
WORLD: Final = "world"
PARTNERS: Final = "partners"


class Call(NamedTuple):
    """One tier calls another: by name inside of an application, records a client and day."""

    client: str
    server: str
    port: int
    rate: float
    pattern: Pattern = "mesh"
    proto: int = TCP


STYLES: Final[dict[str, tuple[Call, ...]]] = {
    "shop": (
        Call(WORLD, "lb", 443, 2.0),
        Call("lb", "web", 8080, 60),
        Call("web", "api", 8000, 50),
        Call("api", "db", 5432, 30, "sticky"),
        Call("api", "cache", 6379, 40),
        Call("api", "queue", 5672, 12, "sticky"),
        Call("worker", "queue", 5672, 20, "sticky"),
        Call("worker", "db", 5432, 10, "sticky"),
        Call("worker", PARTNERS, 443, 4),
        Call("db", "db", 5432, 2),
        Call("queue", "queue", 25672, 2),
    ),
    "stream": (
        Call("collect", "broker", 9092, 40),
        Call("transform", "broker", 9092, 40),
        Call("transform", "search", 9200, 20),
        Call("view", "search", 9200, 15, "sticky"),
        Call(WORLD, "view", 443, 1.0),
        Call("broker", "broker", 9092, 2),
        Call("search", "search", 9300, 2),
        Call("collect", PARTNERS, 443, 10, "sticky"),
    ),
    "office": (
        Call(WORLD, "front", 443, 1.0),
        Call("front", "app", 8080, 25, "sticky"),
        Call("app", "db", 1521, 25),
        Call("report", "db", 1521, 3, "leader"),
        Call("report", "app", 8080, 2),
        Call("app", "files", 2049, 12, "sticky"),
    ),
    "batch": (
        Call("control", "node", 7000, 20),
        Call("node", "control", 7001, 12),
        Call("node", "data", 3306, 15, "sticky"),
        Call("control", "data", 3306, 5),
        Call("data", "data", 3306, 2),
    ),
}
INFRASTRUCTURE: Final = ("dns", "ntp", "log", "metrics", "directory", "bastion", "backup", "packages")
USED_BY_ALL: Final = (
    Call("", "dns", 53, 20, "mesh", UDP),
    Call("", "dns", 53, 0.5),
    Call("", "ntp", 123, 4, "mesh", UDP),
    Call("", "log", 6514, 6, "sticky"),
    Call("", "directory", 636, 3),
    Call("", "packages", 443, 1),
)
METRICS_PORT, SHELL_PORT = 9100, 22
METRICS_RATE, SHELL_RATE = 12.0, 12.0  # records a day: for each host, and of the bastion in all
KEPT_A_DAY: Final = 0.9  # how likely a sticky caller stays with its server for another day
MISTAKES: Final = 0.5  # of the noise; the rest are scans
PATIENT: Final = 0.5  # of what an intruder touches is touched again on each day, to look like a habit
