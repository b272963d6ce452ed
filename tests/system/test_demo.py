"""script/demo tells its whole story, ends by itself, says so by its exit code, leaves nothing behind."""

import signal

import pytest
from tests.support.demo_run import Demo, ends_well, short_folder, sockets

pytestmark = [pytest.mark.engines, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]


@pytest.fixture
def folder():
    with short_folder() as path:
        yield path


@pytest.mark.nightly
def test_the_story_ends_well_and_leaves_nothing(folder):
    ends_well(folder, "bpf")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_it_cleans_up_when_it_is_interrupted(folder, number):
    demo = Demo(folder)
    assert demo.process.stdout
    begun = ""
    for line in demo.process.stdout:
        begun += line
        if "Enrolment" in line:
            break
    demo.process.send_signal(number)
    code, text, complaints = demo.told()
    assert (code, complaints) == (1, ""), text
    assert "interrupted" in text or "terminated" in text
    assert demo.leftovers() == []
    assert not sockets(begun).exists()
