"""The pure parts of tests/vm: its table, the reading of results, the page made of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm import initrd, kept, matrix, report, results, skips
from tests.vm.variant import Variant, lanes

_JUNIT = b"""<testsuites><testsuite name="expectations">
<testcase classname="tests.vm.expectations" name="test_mode[userns-scratch]">
<properties><property name="line" value="sandbox: off"/></properties></testcase>
<testcase classname="tests.vm.expectations" name="test_mode[root-scratch]"/>
<testcase classname="tests.vm.expectations" name="test_mode[setuid-scratch]"><failure message="wrong"/></testcase>
<testcase classname="tests.vm.expectations" name="test_kernel[statmount]">
<properties><property name="kernel feature" value="works"/></properties></testcase>
<testcase classname="t" name="other"><skipped message="no|reason"/></testcase>
</testsuite></testsuites>"""


def _found(exit_code: int = 1) -> results.Found:
    files = {
        "expectations.exit": b"%d 2.5\n" % exit_code,
        "expectations.xml": _JUNIT,
        "kernel": b"6.1.0",
        "booted": b"9.0",
    }
    return results.read(files)._replace(took=("222", "266"), commit="abc")


def test_names_are_unique_and_kernels_known():
    names = [variant.name for variant in matrix.VARIANTS]
    assert len(names) == len(set(names))
    assert {variant.kernel for variant in matrix.VARIANTS} == set(matrix.KERNELS)
    assert set(matrix.KERNELS) <= set(names), "each kernel has a column in the table of features"


@pytest.mark.parametrize("variant", matrix.VARIANTS, ids=lambda variant: variant.name)
def test_sessions_have_names_of_their_own(variant):
    sessions = [session.name for session in variant.sessions]
    assert len(sessions) == len(set(sessions))
    assert all(session["env"]["SANDBOX_VM_VARIANT"] == variant.name for session in variant.job()["sessions"])


def test_a_mode_fails_as_a_whole_or_by_feature():
    variant = Variant("x", "", fails={"userns": "a", ("root", "static image"): "b"})
    assert variant.failure("userns", "scratch") == "a"
    assert variant.failure("root", "static image") == "b"
    assert variant.failure("root", "scratch") == ""


def test_a_variant_is_dealt_over_machines(request):
    whole = Variant("x", "", sessions=lanes("a", "tests/unit", by="file"), shares=2)
    machines = whole.dealt()
    assert [machine.name for machine in machines] == ["x/1", "x/2"]
    dealt, files = [], []
    for session in (session for machine in machines for session in machine.sessions):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *session.args]
        listed = subprocess.run(command, cwd=request.config.rootpath, capture_output=True, text=True, check=True).stdout
        dealt += (mine := [line for line in listed.splitlines() if "::" in line])
        files.append({line.partition("::")[0] for line in mine})
    assert len(dealt) == len(set(dealt)) > 30
    assert not files[0] & files[1], "what one machine runs at once is of different files"
    assert all(files)
    assert f"tests/unit/test_vm.py::{request.node.name}" in dealt
    assert matrix.by_name("e2e-6.1/2").sessions[0].args[2:6] == ("--share", "2/20", "--file-lane", "1/2")


def test_machines_of_a_variant_are_reported_together():
    whole = results.together([_found(0), _found()])
    assert (whole.machines, whole.took, whole.sessions[0].code) == (2, ("444", "532"), 1)
    assert whole.sessions[0].counts() == (6, 2, 2)
    assert whole.commit == "abc"
    few = results.together([results.read({"e2e.exit": b"0 1.0"})._replace(took=("1", "2"))])
    assert (
        f"tests/e2e and tests/native but for what has its own on 6.1 (1 of {matrix.by_name('e2e-6.1').shares} machines)"
        in report.page({"e2e-6.1": few})
    )


def test_results_are_read():
    session = _found().sessions[0]
    assert session.counts() == (3, 1, 1)
    assert session.failed
    assert [case.name for case in session.cases if "other" in case.name] == [], "only its reason is kept"
    assert results.read({}).sessions == ()


def test_what_is_written_is_read_again():
    assert results.load(results.dump(_found())) == _found()


def test_the_page_is_made_of_the_results():
    page = Path(report.__file__).parents[2] / "docs/compatibility.md"
    assert page.read_text() == report.page(kept.found()), "python -m tests.vm --docs"


def test_the_newest_result_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "_PROJECT", tmp_path / "found")
    monkeypatch.setattr(kept.store, "directory", lambda: tmp_path / "store")
    (tmp_path / "found").mkdir()
    (tmp_path / "found/gone.json").write_text("of no machine")
    kept.keep("6.1", _found())
    kept.keep("e2e-6.1/2", _found())
    kept.take()
    assert {*kept.found()} == {"6.1", "e2e-6.1"}
    assert not (tmp_path / "found/gone.json").exists()
    newer = kept.found()["6.1"]._replace(when="9999", kernel="9")
    kept._write(tmp_path / "found/6.1.json", newer)
    kept.take()
    assert kept.found()["6.1"].kernel == "9"


def test_a_session_that_ended_badly_without_a_failed_case_failed():
    assert results.read({"x.exit": b"2 1.0"}).sessions[0].failed


def test_the_page():
    page = report.page({"userns-max-0": _found()})
    assert (
        "| userns-max-0 | user namespaces off, by their number | 6.1.0 | works | FAILS: scratch | one line | -" in page
    )
    assert "- userns-max-0, userns: `sandbox: off`" in page
    assert "| 6.12 | Debian 13's kernel | not run | - | - | - | - |" in page
    assert "- no|reason (userns-max-0)" in page
    assert "| userns-max-0 | yes | 9.0 | 222 | 266 | abc |" in page
    assert "The default matrix, 1 machines: 4 minutes." in page


def test_the_archive_of_the_first_programs():
    data = initrd._cpio([("bin", 0o40755, b""), ("bin/x", 0o100755, b"abc")])
    assert len(data) % 4 == 0
    assert data.count(b"070701") == 3
    assert b"bin/x\0" in data
    assert data.rstrip(b"\0").endswith(b"TRAILER!!!")


_TABLES = b"""<testsuites><testsuite name="x"><testcase classname="tests.vm.homes" name="test_home[ext4-root]"/>
<testcase classname="tests.vm.homes" name="test_home[xfs-userns]"><failure message="no"/></testcase>
<testcase classname="tests.vm.homes" name="test_job[tmpfs-root]"/>
<testcase classname="tests.vm.homes" name="test_job[tmpfs-setuid]"/>
<testcase classname="tests.vm.homes" name="test_job[tmpfs-userns]"/>
<testcase classname="tests.vm.homes" name="test_job_that_writes[tmpfs]">
<properties><property name="line" value="sandbox: cannot show /var/tmp/x as"/></properties></testcase>
<testcase classname="tests.vm.containers" name="test_container[user]">
<properties><property name="python scratch" value="works"/><property name="native scratch" value="works"/>
<property name="python image" value="works"/>
<property name="python job" value="sandbox: /var/tmp/sbx-tests-0123abcd/0123abcd/x: no"/>
<property name="native job" value="sandbox: /var/tmp/sbx-tests-0123abcd/0123abcd/x: no"/></properties></testcase>
</testsuite></testsuites>"""


def test_the_tables_of_homes_and_containers():
    def of(name):
        return results.read({f"{name}.exit": b"0 1.0", f"{name}.xml": _TABLES})

    page = report.page({"homes": of("homes"), "containers": of("containers")})
    assert "| ext4 | works | not run | not run | not run | not run |" in page
    assert "| xfs | not run | not run | FAILS | not run | not run |" in page
    assert "| tmpfs | not run | not run | not run | works | one line |" in page
    assert "- tmpfs: `sandbox: cannot show DIR as`" in page
    assert (
        "| user | podman's default, as a user | works | differs | not run | not run | one line | not run | not" in page
    )
    assert "- user, job: `sandbox: DIR/x: no`" in page


def test_every_variant_names_features_that_there_are(monkeypatch):
    monkeypatch.setenv("SANDBOX_VM_VARIANT", "6.1")
    from tests.vm import expectations

    for variant in matrix.VARIANTS:
        assert {*variant.features} <= {*expectations.FEATURES}, variant.name
        assert {mode for mode in variant.fails if isinstance(mode, str)} <= {*matrix.MODES, matrix.INSTALL}


def test_a_skip_that_nobody_explains():
    assert _found().reasons == ("no|reason",)
    for reason, there, elsewhere in (
        ("with the Python engine in make soak only", "6.1", None),
        ("kernels before 6.12 mount no erofs from a file", "images-6.1", "images-6.12"),
        ("the kernel lets this user make no user namespace", "userns-max-0", "6.1"),
        ("no|reason", None, "6.1"),
    ):
        assert there is None or skips.explanation(reason, matrix.by_name(there))
        assert elsewhere is None or not skips.explanation(reason, matrix.by_name(elsewhere))
    assert skips.explanation("only root can do it", matrix.by_name("6.1")).startswith("root's variant")


def test_a_session_without_a_result_or_a_passed_test():
    found = results.read({"a.exit": b"0 1.0", "expectations.exit": b"0 1.0", "expectations.xml": _JUNIT})
    assert found.incomplete(["expectations", "a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("machine", [*filter(kept.of_project, kept.machines())], ids=lambda machine: machine.name)
def test_what_the_page_shows_has_passed(machine):
    """A machine that failed, or whose sessions are others by now, is run again before its row is shown."""
    found = kept.of_project(machine)
    assert found.incomplete(session.name for session in machine.sessions) == []
    assert [session.name for session in found.sessions if session.failed] == []
    assert [reason for reason in found.reasons if not skips.explanation(reason, machine)] == []
    assert found.machines == 1
