"""script/demo where no kernel enforces: the same story, beside other tests of the kernel."""

import os
import re

import pytest
from tests.support.demo_run import Demo, ends_well, short_folder

# Root without what a kernel's world needs; others lack it anyway. The demo finds that out by itself.
LESS = ("setpriv", "--bounding-set=-sys_admin,-net_admin,-bpf,-perfmon") if os.geteuid() == 0 else ()
# A story that expects what the control plane refuses.
MISTAKEN = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from demo import main, story
def mistaken(scene):
    with scene.account.step("A service without a name"):
        scene.post("it is accepted", "/api/v1/services", {})
def after(scene):
    with scene.account.step("Afterwards"):
        scene.account.expect("it goes on", True, "as told")
main.CHAPTERS = (story.build, story.control_plane, mistaken, after)
sys.exit(main.main(sys.argv[1:]))
"""
pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.nightly]


@pytest.fixture
def folder():
    with short_folder() as path:
        yield path


def test_the_story_ends_well_where_the_kernel_refuses(folder):
    ends_well(folder, "simulated", LESS)


def test_what_is_not_as_expected_is_told_and_fails_it(folder):
    demo = Demo(folder, "--simulated", code=MISTAKEN)
    code, text, complaints = demo.told()
    assert (code, complaints) == (1, ""), text
    assert "asked for by --simulated" in text
    assert "FAIL it is accepted" in text
    assert "ok   it goes on" in text, "one failure does not end the story"
    assert "not as expected: it is accepted" in text
    assert re.search(r" 1 failed; \d+ s; FAILED$", text.rstrip()), text
    assert demo.leftovers() == []
