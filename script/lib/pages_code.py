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
    return page("Commands", "`cli.py` and `agent/cli.py`", *filter(None, parts))


def settings_page() -> str:
    """Settings of the control plane and of the agent."""
    agent: Any = import_module("aegisflux.agent_bootstrap")
    inner: Any = import_module("aegisflux.agent.parts").AgentSettings
    parts = [
        f"## The agent: `{agent.CONFIG}`",
        f"Each can be set by the environment too: `{agent.PREFIX}` and its name in capitals.",
        fields_table(agent.AgentConfig, agent.PREFIX, inner),
        f"A line of `failsafe` has {codes(agent.FailsafeSetting.__struct_fields__)}: {FAILSAFE_HOWTO}.",
    ]
    return page("Settings", "`settings.py` and `agent_bootstrap.py`", *parts)


def fields_table(kind: Any, prefix: str, more: Any = None) -> str:
    """The fields of a Struct, explained by `name: sentence` lines of its docstring (else of `more`'s)."""
    said = {**_sentences(more), **_sentences(kind)}
    rows = []
    for field in msgspec.structs.fields(kind):
        if field.name not in said:
            raise KeyError(f"{kind.__name__}.{field.name}: its docstring has no line for it")
        default = "" if field.default is msgspec.NODEFAULT else json.dumps(msgspec.to_builtins(field.default))
        env = code(prefix + field.name.upper())
        rows.append((code(field.name), env, code(default), said[field.name]))
    return table(("setting", "environment", "default", "meaning"), rows)


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


def openapi_page(title: str, source: str, document: dict[str, Any]) -> str:
    """Every operation of an OpenAPI document."""
    rows, parts = [], []
    for path, methods in sorted(document["paths"].items()):
        for method, operation in sorted(methods.items()):
            name = f"{method.upper()} {path}"
            rows.append((code(name), operation.get("summary", "")))
            parts += [f"## `{name}`", _body(operation.get("description") or operation.get("summary") or "")]
            if parameters := operation.get("parameters"):
                parts.append(table(("parameter", "in", "required", "meaning"), map(_parameter, parameters)))
            if answers := operation.get("responses"):
                parts.append(_answers(answers))
    return page(title, source, table(("operation", "what it does"), rows), *filter(None, parts))


def _answers(answers: dict[str, Any]) -> str:
    return table(
        ("answer", "meaning"),
        [(code(status), first_line(answer.get("description"))) for status, answer in sorted(answers.items())],
    )


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
if find_spec("aegisflux.runtime.metrics"):
    PAGES["docs/reference/metrics.md"] = metrics_page
if find_spec("aegisflux.agent_bootstrap"):
    PAGES["docs/reference/settings.md"] = settings_page
