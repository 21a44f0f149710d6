"""Checks and remedies without a host to match."""

import argparse
import errno
import json

import pytest

from sandbox import doctor, remedies, trials
from sandbox.cli import doctor as command
from sandbox.doctor import Check
from sandbox.remedies import Family


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("ID=debian\n", Family.DEBIAN),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', Family.DEBIAN),
        ('NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\n', Family.RHEL),
        ("ID=fedora\n", Family.FEDORA),
        ("ID=ubuntu\nID_LIKE=debian\n", Family.DEBIAN),
        ("ID=manjaro\nID_LIKE=arch\n", Family.ARCH),
        ("ID=alpine\n", Family.OTHER),
        ("", Family.OTHER),
    ],
)
def test_distribution(tmp_path, text, family):
    path = tmp_path / "os-release"
    path.write_text(text)
    assert remedies.distribution(str(path)) is family


def test_distribution_without_the_file(tmp_path):
    assert remedies.distribution(str(tmp_path / "absent")) is Family.OTHER


@pytest.mark.parametrize("what", sorted(remedies._PACKAGES))
@pytest.mark.parametrize("family", list(Family))
def test_every_package_has_a_command(what, family):
    text = remedies.install(what, family)
    assert family.value in text
    assert what in text or family is not Family.OTHER


def test_sudo_only_for_ordinary_users(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert remedies.install("tar2sqfs", Family.DEBIAN) == "sudo apt-get install squashfs-tools-ng"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert remedies.install("tar2sqfs", Family.ARCH) == "pacman -S squashfs-tools-ng"


@pytest.mark.parametrize(
    ("release", "ok"),
    [
        ("5.12.0", True),
        ("6.1.0-18-amd64", True),
        ("5.11.22", False),
        ("4.19.0", False),
        ("7.0-rc1", True),
        ("5.12+", True),
    ],
)
def test_kernel_baseline(monkeypatch, release, ok):
    monkeypatch.setattr("os.uname", lambda: type("uname", (), {"release": release}))
    check = doctor._kernel()
    assert check.ok is ok
    assert bool(check.remedy) is not ok


@pytest.mark.parametrize(
    ("number", "sysctls", "expected"),
    [
        (errno.ENOSPC, {}, "user.max_user_namespaces=15000"),
        (errno.EPERM, {"kernel/unprivileged_userns_clone": "0"}, "kernel.unprivileged_userns_clone=1"),
        (
            errno.EACCES,
            {"kernel/apparmor_restrict_unprivileged_userns": "1"},
            "apparmor_restrict_unprivileged_userns=0",
        ),
        (errno.EINVAL, {}, "CONFIG_USER_NS"),
        (errno.EPERM, {}, "seccomp"),
    ],
)
def test_remedy_names_what_forbids_user_namespaces(monkeypatch, number, sysctls, expected):
    monkeypatch.setattr(doctor, "sysctl_value", lambda path: sysctls.get(path, ""))
    check = doctor._userns_mode({"namespaces": (number, "no")})
    assert not check.ok
    assert expected in check.remedy


def test_a_check_that_fails_has_a_remedy():
    for check in doctor.examine():
        assert bool(check.remedy) is not check.ok, check
        assert "\n" not in check.detail + check.remedy


def test_a_trial_reports_the_step_that_failed():
    def attempt(found: trials.Trial) -> None:
        with trials._step(found, "first"):
            pass
        with trials._step(found, "second"):
            raise OSError(errno.EBUSY, "busy")

    found = trials.trial(attempt)
    assert found == {"first": (0, ""), "second": (errno.EBUSY, "busy")}
    assert trials.failure(found, ("first", "second")) == ("second", errno.EBUSY, "busy")
    assert trials.failure(found, ("first",)) is None


def test_a_trial_that_crashes_is_a_failure_not_an_exception():
    def attempt(found: trials.Trial) -> None:
        raise RuntimeError

    assert trials.failure(trials.trial(attempt), ("anything",)) == ("anything", errno.ECANCELED, "was not reached")


@pytest.mark.parametrize(("usable", "code"), [({"root"}, 0), ({"userns"}, 0), (set(), 1)])
def test_exit_code_says_whether_a_mode_works(monkeypatch, capsys, usable, code):
    checks = [Check(f"mode {name}", name in usable, "", "" if name in usable else "x") for name in ("root", "userns")]
    monkeypatch.setattr(command, "examine", lambda: checks)
    assert command.main(argparse.Namespace(json=True, fix=False, self_test=False)) == code
    assert json.loads(capsys.readouterr().out)["modes"] == {"root": "root" in usable, "userns": "userns" in usable}


def test_output_without_unicode(monkeypatch, capsys):
    monkeypatch.setattr(command, "_marks", lambda: ("ok", "no"))
    command._print_plain([Check("good", True, "fine"), Check("bad", False, "broken", "mend it")])
    assert capsys.readouterr().out == "ok good  fine\nno bad   broken\n         -> mend it\n"


def test_below_the_baseline_no_mode_works(monkeypatch):
    """Linux 5.10 mounts well enough for the trials; `sandbox run` refuses it all the same."""
    monkeypatch.setattr(
        doctor, "_kernel", lambda: Check("kernel", False, "5.10 is too old", "boot Linux 5.12 or later")
    )
    assert doctor.modes(doctor.examine()) == {"root": False, "setuid": False, "userns": False}
