"""Numbers in texts are ASCII digits in their usual spelling, wherever a text becomes a number."""

# ruff: noqa: E501
import pytest

from aegisflux.agent.control import Question, flow_of
from aegisflux.cli import app, nouns
from aegisflux.cli.facts import moment
from aegisflux.cli.segment import gates, seconds
from aegisflux.domain.digits import decimal, whole
from aegisflux.domain.errors import Invalid, Refused
from aegisflux.domain.guardrails import parse_window
from aegisflux.domain.net import parse_address, parse_cidr
from aegisflux.domain.policy import parse_port
from aegisflux.domain.search import FLOW_FIELDS, parse_search
from aegisflux.services.orchestrator.views import Asked
from aegisflux.settings import load

ODD = ["٢٢", "２２", "२२", "022", "0022", "+22", "-22", " 22", "22 ", "2_2", "22.0", "2.2e1", "0x16", "0b1", "²", "22\n", "", "nan",
       "9" * 5000]  # fmt: skip
PARSERS = {
    "a port of a policy": lambda text: parse_port(f"tcp/{text}", "ports"),
    "a length of a prefix": lambda text: parse_cidr(f"10.0.0.0/{text}"),
    "a length of an IPv6 prefix": lambda text: parse_cidr(f"fd00::/{text}"),
    "an octet": lambda text: parse_address(f"10.0.0.{text}"),
    "an octet inside of IPv6": lambda text: parse_address(f"::ffff:10.0.0.{text}"),
    "a port of a filter": lambda text: parse_search(f'port="{text}"', FLOW_FIELDS),
    "a protocol of a filter": lambda text: parse_search(f'proto="{text}"', FLOW_FIELDS),
    "a protocol of a question": lambda text: Asked("10.0.0.1", text, 22).flow(),
    "a protocol that an agent is asked": lambda text: flow_of(
        Question("why", proto=text, peer="10.0.0.1", port=22)
    ),
    "how long ago": lambda text: moment(f"{text}m"),
    "a period": lambda text: seconds(f"{text}h"),
    "a window": lambda text: parse_window(f"mon {text}:00-23:00"),
    "minutes of a window": lambda text: parse_window(f"mon 08:{text}-23:00"),
}


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS.keys())
def test_a_number_is_ascii_digits(parser):
    parser("22")
    for text in ODD:
        if parser is PARSERS["a window"] and text == " 22":
            continue  # two spaces between day and time are as good as one
        with pytest.raises(Refused):
            print(repr(text), parser(text))  # which one, when it is not refused


@pytest.mark.parametrize("text", ODD)
def test_the_one_reader_of_numbers(text):
    assert whole(text) is None
    assert decimal(text) is None or text == "22.0"


@pytest.mark.parametrize("text", ["7", "0.25", "0", "100"])
def test_gates_are_numbers(text):
    assert gates([f"fine={text}"]) == {"fine": float(text)}


@pytest.mark.parametrize("text", ["nan", "inf", "1e3", "1_0", "٧", "07", "", ".5", "-1"])
def test_gates_are_no_other_texts(text):
    with pytest.raises(Refused, match="--gate"):
        gates([f"fine={text}"])


@pytest.mark.parametrize("text", ["mon 08:75-09:00", "mon 24:30-24:40", "mon 8:5-9:00", "mon 008:00-09:00"])
def test_clocks_have_sixty_minutes(text):
    with pytest.raises(Invalid):
        parse_window(text)


@pytest.mark.parametrize("text", ["1e4", "08080", "+8080", "８０８０", "8080.", "8_080", " 8080"])
def test_settings_of_the_environment_are_plain_numbers(text):
    with pytest.raises(Invalid, match="port_base: expected a number in ASCII digits"):
        load(None, {"AEGISFLUX_PORT_BASE": text})


@pytest.fixture
def calls(monkeypatch):
    found = []
    answer = {"warnings": [], "dry_run": False}
    monkeypatch.setattr(nouns, "call", lambda *given: found.append(given) or answer)
    return found


def run(*args: str) -> int:
    try:
        app(list(args), exit_on_error=False, print_error=False)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.mark.parametrize("text", ["101.6", "101.0", "٣", "1_01", "0x65", "0101", "+101", "1e2", "nan", ""])
@pytest.mark.parametrize("args", [("withdraw", "{}"), ("promote", "{}"), ("promote", "101", "--version", "{}"),
                                  ("rollback", "101", "--to-version", "{}"), ("status", "{}")])  # fmt: skip
def test_arguments_of_the_command_line_are_not_rounded(calls, args, text):
    """`snapshot withdraw 101.6` withdrew service 102."""
    with pytest.raises(Exception, match="expected an integer in ASCII digits"):
        run("snapshot", *(part.format(text) for part in args))
    assert calls == []


def test_the_version_that_is_promoted_is_that_of_the_snapshot(calls, capsys):
    """It printed the version of a library, and promoted nothing."""
    assert run("snapshot", "promote", "101", "--version", "5") == 0
    assert calls == [("POST", "/seg/maps/promote", {"service_id": 101, "version": 5}, {})]
