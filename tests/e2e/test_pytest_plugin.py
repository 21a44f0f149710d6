"""The pytest plugin: tests in sandboxes come out as if they were bare, and cannot come out as anything else."""

import json
import re
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SAMPLE, HOSTILE = SUPPORT / "sample_suite.txt", SUPPORT / "hostile_suite.txt"
# What pytest is told of each test, but for the times.
WITNESS = """
import json, os, pytest

def pytest_runtest_logreport(report):
    # Where objects are, and directories of tmp_path, differ from run to run.
    text = report.longreprtext
    facts = [report.nodeid, report.when, report.outcome, text, report.sections, report.user_properties, report.location]
    facts += [sorted(report.keywords), getattr(report, "wasxfail", None), type(report.longrepr).__name__]
    # A marked test's own pytest has this file as well.
    if os.environ.get("SANDBOX_PYTEST_INSIDE") != "1":
        print("REPORT", json.dumps(facts))
    assert report.duration >= 0
"""
MARKED = "import pytest\npytestmark = pytest.mark.sandbox\n"
HIDDEN = re.compile(r"0x[0-9a-f]+|[^\s'\"]*pytest-of-[^\s'\"]*")


@pytest.fixture
def bench(run_sandbox, area, who):
    """`bench(source, *args) -> (exit code, reports, all output)` of a pytest in a directory of its own."""
    run_sandbox.command = run_sandbox.command.parent / "python"
    where = area.dir(who.as_user)
    (where / "conftest.py").write_text(WITNESS)
    (where / "pytest.ini").write_text("[pytest]\naddopts = -s\n")

    def run(source, *args, cache=False):
        (where / "test_sample.py").write_text(source)
        command = ["-m", "pytest", *([] if cache else ["-p", "no:cacheprovider"]), "--capture=fd", "-q", *args]
        env = {"PYTEST_DEBUG_TEMPROOT": str(where)}
        done = run_sandbox(command, as_user=who.as_user, env=env, timeout=200)
        lines = [line.partition("REPORT ")[2] for line in done.stdout.splitlines() if "REPORT " in line]
        reports = [json.loads(HIDDEN.sub("...", line)) for line in lines]
        return done.returncode, reports, done.stdout + done.stderr

    return run


def test_reports_are_as_if_bare(bench):
    bare = bench(SAMPLE.read_text())
    assert bare[0] == 1
    assert len(bare[1]) >= 30
    session = bench(SAMPLE.read_text(), "--sandbox")
    assert session[:2] == bare[:2], session[2]
    marked = bench(SAMPLE.read_text() + MARKED)

    def plain(reports):
        # The marker's own name, and the module's fixture, which each test makes and ends anew in a pytest of its own.
        for report in reports:
            report[4] = [part for part in report[4] if part[1] not in ("made\n", "gone\n")]
            report[7] = [name for name in report[7] if name not in ("sandbox", "pytestmark")]
        return reports

    assert marked[0] == bare[0], marked[2]
    assert plain(marked[1]) == plain(bare[1])


def test_nothing_is_said_of_what_pytest_itself_writes(bench):
    """Bytecode and its cache go with the sandbox, which tells of changes to the working directory."""
    code, _, out = bench(MARKED + "def test_it(cache): assert cache.get('a/b', 1) == 1\n", cache=True)
    assert code == 0, out
    assert "discarded" not in out
    _, _, out = bench(MARKED + "def test_it(): open('x', 'w').close()\n")
    assert out.count("1 changed file of the working directory was discarded") == 1


INSIDE = """
import os, pytest

def test_bare():
    assert os.uname().nodename != "sandbox"

@pytest.fixture(scope="module")
def shared():
    yield
    print("torn down")

def test_with_a_fixture(shared):
    pass

@pytest.mark.sandbox(level="job", env={"A": "1"}, hostname="inner")
def test_inside(shared, tmp_path):
    assert (os.uname().nodename, os.environ["A"]) == ("inner", "1")
    open("written", "w").close()

def test_after(shared, sandbox):
    assert not os.path.exists("written")
    assert sandbox.run(["hostname"], capture_output=True).stdout == b"sandbox\\n"

@pytest.mark.parametrize("sandbox", [{"hostname": "other"}], indirect=True)
def test_given(sandbox):
    assert sandbox.run(["hostname"], capture_output=True).stdout == b"other\\n"

@pytest.mark.sandbox(level="strict")
def test_strict():
    assert not os.path.exists("/boot")

@pytest.mark.sandbox(isolation="nonsense")
def test_wrong():
    pass

@pytest.mark.sandbox
def test_dies():
    os._exit(5)

@pytest.mark.sandbox(timeout=1)
def test_is_too_slow():
    __import__("time").sleep(600)
"""


@pytest.mark.parametrize("how", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_marked_tests_run_inside(bench, how):
    code, reports, output = bench(INSIDE, *how)
    assert code == 1, output
    if not how:
        failed = {report[0].split("::")[1]: report[3] for report in reports if report[2] == "failed"}
        assert failed.keys() == {"test_wrong", "test_dies", "test_is_too_slow"}, output
        assert "nonsense" in failed["test_wrong"]
        assert failed["test_dies"] == "sandbox: the test's process ended with 5 before it could report"
        assert "ended with 124" in failed["test_is_too_slow"]
    assert "3 failed, 6 passed" in output


def test_a_session_inside(bench, who):
    source = (
        "import os\ndef test_it(worker_id):\n assert os.uname().nodename == 'sandbox', worker_id\n open('w', 'w')\n"
    )
    assert bench(source)[0] == 1
    for more in ([], ["-n", "2"]):
        code, _, output = bench(source, "--sandbox", *more)
        assert (code, "1 passed" in output) == (0, True), output
    code, _, output = bench(source, "--sandbox", "--sandbox-option=isolation=nonsense")
    assert code == 4, output
    assert "nonsense" in output


def test_a_test_can_lie_about_itself_only(bench, area, who):
    """None vanishes, whatever it says or leaves out, and none is in the way of the others or of what tells of them."""
    code, reports, output = bench(HOSTILE.read_text(), "-rA", "--junit-xml=junit.xml")
    assert code == 1, output
    assert "INTERNALERROR" not in output
    assert "test_other" not in output
    by_test = {report[0].split("::")[1]: report for report in reports if report[1] == "call"}
    others = {name for name, report in by_test.items() if report[2] != "failed"}
    assert others == {*(f"test_lies[{number}]" for number in range(3)), "test_after"}, "these three lied well"
    for test, told in (("test_exits", "0 when it had reported: setup"), ("test_is_interrupted", "2 when")):
        assert f"sandbox: the test's process ended with {told}" in by_test[test][3]
    assert by_test["test_dies_of_its_end"][3] == "sandbox: the test's process ended with 7 after its reports"
    junit = (area.dir(who.as_user) / "junit.xml").read_text()
    testcases = re.findall(r'<testcase [^>]*\bname="([^"]*)"[^>]*\btime="[0-9.]+"', junit)
    assert sorted(testcases) == sorted(by_test), junit
    assert len(by_test) == 27 + 6


def test_a_lie_survives_xdist(bench):
    code, _, output = bench(HOSTILE.read_text(), "-n", "2")
    assert (code, "crashed" in output, "INTERNALERROR" in output) == (1, False, False), output
    assert "29 failed, 2 passed, 1 skipped, 1 xfailed" in output


def test_a_project_has_the_same_results(run_sandbox, area, who):
    """toolz from PyPI, which brings its tests along."""
    run_sandbox.command = run_sandbox.command.parent / "python"
    seen = []
    for how in ([], ["--sandbox"], ["--sandbox", "-n", "2"]):
        command = ["-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "toolz", "-rA", "-q", *how]
        done = run_sandbox(command, as_user=who.as_user, timeout=200)
        results = re.findall(
            r"^((?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) .*?)(?: - .*)?$", done.stdout, re.MULTILINE
        )
        seen.append((done.returncode, sorted(results)))
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0] == 0
    assert len(seen[0][1]) > 150
