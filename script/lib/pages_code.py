"""Generated pages about the program: settings, commands, HTTP endpoints, metrics."""

import inspect
import json
import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import commands
import msgspec
from markdown import code, codes, first_line, page, table

FAILSAFE_HOWTO = "[how to narrow it](../howto/get-out-of-a-lock-out.md#narrow-the-failsafe)"
UNKNOWN_SETTINGS = (
    "A setting in a file, or a variable that begins with `AEGISFLUX_`, that is not on this page is "
    "refused by each start, with the name that was probably meant; so is a value that is not allowed. "
    "Commands that ask, `panic` and `resume` say it and go on without it. What an agent that is refused "
    "enforced before stays in force until its leases end ([ADR "
    "0023](../adr/0023-requests-mean-what-they-say.md)). A variable that is empty is not given; names "
    "of any case are ours, and those that Kubernetes gives to a pod beside a service called `aegisflux` "
    "are not."
)
EXIT_CODES = (
    (0, "fine"),
    (1, "differences, or something was found"),
    (2, "error"),
    (3, "refused"),
    (4, "unavailable"),
)


def cli_page() -> str:
    """Every verb with its arguments."""
    app = import_module("aegisflux.cli").app
    verbs = list(commands.tree(app))
    index = [(_link(verb.path), verb.summary) for verb in verbs]
    parts = [
        table(("command", "what it does"), index),
        "## Exit codes",
        table(("code", "meaning"), EXIT_CODES),
    ]
    for verb in verbs:
        parts += [f"## `aegisflux {verb.path}`", _body(verb.help)]
        if verb.arguments:
            parts.append(table(("argument", "default", "meaning"), map(_argument, verb.arguments)))
    return page("Commands", "`cli/` and `agent/cli.py`", *filter(None, parts))


def settings_page() -> str:
    """Settings of the control plane and of the agent."""
    control: Any = import_module("aegisflux.settings")
    agent: Any = import_module("aegisflux.agent.config")
    inner: Any = import_module("aegisflux.agent.parts").AgentSettings
    parts = [
        UNKNOWN_SETTINGS,
        f"## The control plane: `{control.CONFIG}`",
        f"Each can be set by the environment too: `{control.PREFIX}` and its name in capitals.",
        "A list is comma-separated there. What the command line says wins.",
        *fields_tables(control.Settings, control.PREFIX, None),
        f"## The agent: `{agent.CONFIG}`",
        f"Each can be set by the environment too: `{agent.PREFIX}` and its name in capitals.",
        *fields_tables(agent.AgentConfig, agent.PREFIX, inner),
        f"A line of `failsafe` has {codes(agent.FailsafeSetting.__struct_fields__)}: {FAILSAFE_HOWTO}.",
        f"`{agent.PREFIX}CONFIG` names another file.",
        "## Commands",
        f"They read {codes(sorted(control.CLIENTS))}.",
    ]
    return page("Settings", "`settings.py` and `agent/config.py`", *parts)


def fields_tables(kind: Any, prefix: str, more: Any = None) -> list[str]:
    """The fields of a Struct, explained by `name: sentence` lines of its docstring (else of `more`'s), and
    those of the tables in it."""
    allowed: Any = import_module("aegisflux.runtime.configured").allowed
    said = {**_sentences(more), **_sentences(kind)}
    rows, tables = [], []
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            tables += [f"### `[{field.name}]`", *fields_tables(field.type, f"{prefix}{field.name.upper()}_")]
            continue
        if field.name not in said:
            raise KeyError(f"{kind.__name__}.{field.name}: its docstring has no line for it")
        default = "" if field.default is msgspec.NODEFAULT else json.dumps(msgspec.to_builtins(field.default))
        env = code(prefix + field.name.upper())
        rows.append((code(field.name), env, code(default), allowed(field.type), said[field.name]))
    return [table(("setting", "environment", "default", "allowed", "meaning"), rows), *tables]


def _sentences(kind: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(kind.__doc__ or "").splitlines()[1:]:
        if match := re.match(r"([a-z_][a-z_0-9]*(?:, [a-z_][a-z_0-9]*)*): +(.+)", line):
            names = match[1].split(", ")
            found.update(dict.fromkeys(names, match[2]))
        elif line.startswith(" ") and names:
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
        else:
            names = []
    return found


def metrics_page() -> str:
    """Every metric of the control plane."""
    module = import_module("aegisflux.runtime.metrics")
    kinds: Any = import_module("prometheus_client.metrics")
    found = [value for value in vars(module).values() if isinstance(value, kinds.MetricWrapperBase)]
    rows = [
        (code(name), family.type, codes(metric._labelnames), family.documentation)
        for metric in found
        for family in metric.describe()
        for name in [family.name + ("_total" if family.type == "counter" else "")]
    ]
    return page(
        "Metrics",
        "`runtime/metrics.py`",
        "Prometheus's text format at `/metrics`. No host, address or CVE is ever a label. A host's own"
        " counters travel in its heartbeat.",
        table(("metric", "type", "labels", "meaning"), rows),
    )


def http_page() -> str:
    """Every operation of the orchestrator."""
    app = import_module("aegisflux.services.orchestrator.api").application(None)
    document: dict[str, Any] = app.openapi_schema.to_schema()
    roles = _roles(app)
    bodies = document.get("components", {}).get("schemas", {})
    rows, parts = [], []
    for path, methods in sorted(document["paths"].items()):
        for method, operation in sorted(methods.items()):
            name, said = f"{method.upper()} {path}", first_line(operation.get("description"))
            rows.append((code(name), roles[name], said.split(". ")[0].rstrip(".")))
            parts += [f"## `{name}`", _body(operation.get("description") or "")]
            parts.append(f"Needs the role {code(roles[name])}." if roles[name] else "Needs no token.")
            if parameters := operation.get("parameters"):
                parts.append(table(("parameter", "in", "required", "meaning"), map(_parameter, parameters)))
            parts.append(_request(operation.get("requestBody"), bodies))
    return page(
        "HTTP",
        "the OpenAPI document of the orchestrator, which it serves itself at `/schema`",
        "Plain HTTP on 127.0.0.1, TLS on every other address. `Authorization: Bearer <token>` where a role"
        " is needed; a higher role includes the lower ones: viewer, operator, approver, admin. Errors are"
        " RFC 9457 problems (`application/problem+json`).",
        table(("operation", "role", "what it does"), rows),
        *filter(None, parts),
    )


def _roles(app: Any) -> dict[str, str]:
    """The role that each operation's guard asks for; "" where there is none."""
    found: dict[str, str] = {}
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            asked = [
                inspect.getclosurevars(guard).nonlocals.get("role", "") for guard in handler.guards or ()
            ]
            for method in handler.http_methods:
                found[f"{method} {route.path_format}"] = next(filter(None, asked), "")
    return found


def _request(body: dict[str, Any] | None, bodies: dict[str, Any]) -> str:
    """The fields of a request's body, unless it is a MapSnapshot."""
    if body is None:
        return ""
    schema = body["content"]["application/json"]["schema"]
    schema = bodies.get(str(schema.get("$ref", "")).rpartition("/")[2], schema)
    if {"edges", "ttl_seconds"} <= schema.get("properties", {}).keys():
        return "Body: a [MapSnapshot](mapsnapshot.md)."
    required = schema.get("required", [])
    rows = [(code(name), "yes" if name in required else "no") for name in schema.get("properties", {})]
    head = "Body, a JSON object. " + first_line(schema.get("description"))
    return head.strip() + "\n\n" + table(("field", "required"), rows)


def _parameter(parameter: dict[str, Any]) -> tuple[str, str, str, str]:
    return (
        code(parameter["name"]),
        parameter["in"],
        "yes" if parameter.get("required") else "no",
        first_line(parameter.get("description")),
    )


def _argument(argument: commands.Argument) -> tuple[str, str, str]:
    names = [name for name in argument.names if not name.startswith("--no-")]
    shown = codes(names)
    if argument.by_place:
        shown = code(names[0].lstrip("-").upper()) + " or " + shown
    if argument.required:
        shown += " (required)"
    env = f" Environment: {codes(argument.env)}." if argument.env else ""
    return shown, code(argument.default), argument.help + env


def _body(text: str) -> str:
    """A docstring as Markdown, without its list of parameters."""
    text = re.split(r"\n\s*(?:Parameters|Args|Returns|Raises)\s*:?\n", text)[0]
    return "\n".join(line.strip() for line in text.strip().splitlines())


def _link(path: str) -> str:
    anchor = "aegisflux-" + path.replace(" ", "-")
    return f"[`aegisflux {path}`](#{anchor})"


PAGES: dict[str, Callable[[], str]] = {}
if find_spec("aegisflux.cli"):
    PAGES["docs/reference/cli.md"] = cli_page
PAGES |= {
    "docs/reference/http.md": http_page,
    "docs/reference/metrics.md": metrics_page,
    "docs/reference/settings.md": settings_page,
}
