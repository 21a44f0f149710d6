"""Setuid mode without a helper: what keeps a user from it, the policy, the journal, the profile."""

import json
import os
import stat
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from sandbox import apparmor, codec, fsops, host, journal, launch, policy, setuid, setuid_status, versions
from sandbox.errors import HostError, UsageError
from sandbox.level_steps import Timeout
from sandbox.plan import Plan
from sandbox.plan_types import Mode, PlanFlag, Source, SourceKind
from sandbox.spec import Spec, validate

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root's own directories are safe")


# -- choosing the mode ----------------------------------------------------------------------------------------


def machine(*, may_mount=False):
    return host.Host(1000, 1000, (6, 1), may_mount, 1 << 30)


@pytest.mark.parametrize(
    ("wanted", "may_mount", "obstacle", "mode"),
    [
        ("auto", True, None, Mode.ROOT),
        ("auto", False, None, Mode.SETUID),
        ("auto", False, HostError("no"), Mode.USERNS),
        ("setuid", False, None, Mode.SETUID),
        ("setuid", True, None, Mode.SETUID),
        ("userns", False, None, Mode.USERNS),
        ("root", True, HostError("no"), Mode.ROOT),
    ],
)
def test_choice_of_mode(monkeypatch, wanted, may_mount, obstacle, mode):
    monkeypatch.setattr(setuid, "obstacle", lambda: obstacle)
    assert host.choose_mode(wanted, machine(may_mount=may_mount)) is mode


def test_an_explicit_choice_says_what_is_in_the_way(monkeypatch):
    monkeypatch.setattr(setuid, "obstacle", lambda: HostError("it is not there", hint="fetch it"))
    with pytest.raises(HostError) as error:
        host.choose_mode("setuid", machine())
    assert str(error.value) == "--mode setuid: it is not there (fetch it)"


def test_the_python_engine_is_never_setuid(monkeypatch):
    with pytest.raises(UsageError, match="only a program can be setuid"):
        validate(Spec(command=(b"true",), mode="setuid", engine="python"))
    monkeypatch.setattr(setuid, "obstacle", lambda: None)
    assert host.choose_mode("auto", machine(), helper=False) is Mode.USERNS


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """A file in the helper's place that looks right; the process looks like an ordinary user's."""
    path = tmp_path / "sandbox-helper"
    path.write_text("#!/bin/sh\necho sandbox-helper 7.8 plans 2-3\n")
    path.chmod(0o4755)
    monkeypatch.setattr(setuid, "HELPER", str(path))
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    real = os.stat

    def roots(target, **options):
        status = real(target, **options)
        return SimpleNamespace(
            **{name: getattr(status, name) for name in dir(status) if name[:3] == "st_"} | {"st_uid": 0}
        )

    monkeypatch.setattr(setuid.os, "stat", roots)
    return path


def test_nothing_is_in_the_way(helper, monkeypatch):
    monkeypatch.setattr(setuid, "_powerless", lambda: None)
    nosuid = os.statvfs(helper).f_flag & os.ST_NOSUID
    assert nosuid or setuid.obstacle() is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path, patch: path.unlink(), "not installed"),
        (lambda path, patch: path.chmod(0o755), "not a setuid-root program"),
        (lambda path, patch: patch.setattr(setuid.os, "access", lambda *_: False), "only members of "),
        (lambda path, patch: patch.setattr(setuid.os, "getuid", lambda: 0), "root needs no helper"),
    ],
)
def test_what_is_in_the_way(helper, monkeypatch, spoil, words):
    spoil(helper, monkeypatch)
    why = setuid.obstacle()
    assert why is not None
    assert words in why.message
    assert why.hint
    assert "\n" not in str(why)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"sandbox-helper 0.1.0 plans 1-1\n", ("0.1.0", 1, 1)),
        (b"sandbox-helper 2 plans 1-12\n", ("2", 1, 12)),
        (b"", None),
        (b"sandbox-engine 0.1.0 plans 1-1\n", None),
        (b"sandbox-helper 0.1.0 plans 1-1", None),
        (b"sandbox-helper 0.1.0 plans 1\n", None),
        (b"sandbox-helper 0.1.0 plans -1\n", None),
        (b"sandbox-helper 0.1.0 plans 1-1 more\n", None),
        (b"sandbox-helper \xff plans 1-1\n", None),
    ],
)
def test_version_line(line, expected):
    version = setuid.parse_version(line)
    assert (None if version is None else tuple(version)) == expected


HOME = Source(SourceKind.DIRECTORY, b"/home", 1, 2)


def a_plan(*steps):
    return Plan(Mode.SETUID, PlanFlag.LEAVE_RUNNING, 0, 0, HOME, (), steps)


@pytest.fixture
def home_fd(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    with fsops.closing(os.open(home, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        yield fd


def takes(helper, versions):
    helper.write_text(f"#!/bin/sh\necho sandbox-helper 7.8 plans {versions}\n")


def test_the_helper_is_asked_once_and_again_when_it_is_another_file(helper, home_fd, tmp_path, monkeypatch):
    asked = []
    ask = setuid.ask_version
    monkeypatch.setattr(setuid, "ask_version", lambda program: asked.append(program) or ask(program))
    for _ in range(3):
        setuid.acceptable(a_plan(), home_fd)
    assert len(asked) == 1
    os.utime(helper, (1, 1))
    setuid.acceptable(a_plan(), home_fd)
    assert len(asked) == 2
    (tmp_path / "home/helper-version").write_bytes(b"rubbish")
    setuid.acceptable(a_plan(), home_fd)
    assert len(asked) == 3
    helper.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(HostError, match="does not say which plans"):
        setuid.acceptable(a_plan(), home_fd)


@pytest.mark.parametrize(("said", "version"), [("1-1", 1), ("1-2", 2), ("2-2", 2), ("2-9", 2), ("0-1", 1)])
def test_a_plan_is_written_for_the_helper(helper, home_fd, said, version):
    takes(helper, said)
    assert setuid.acceptable(a_plan(), home_fd) == (a_plan(), version)
    assert codec.encode(a_plan(), version)[8:10] == bytes([version, 0])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("1-1", "--timeout in setuid mode needs a newer sandbox-helper: 7.8 takes plans 1-1 (as root: "),
        ("0-0", "setuid mode needs a newer sandbox-helper: 7.8 takes plans 0-0, this makes 1-2 (as root: "),
        ("3-4", "this sandbox is too old for the setuid helper: 7.8 takes plans 3-4, this makes 1-2 (update sandbox"),
    ],
)
def test_who_is_too_old_is_said_in_one_line(helper, home_fd, said, words):
    takes(helper, said)
    with pytest.raises(HostError) as error:
        setuid.acceptable(a_plan(Timeout(1, 1)), home_fd)
    assert str(error.value).startswith(words)
    assert "\n" not in str(error.value)


def test_an_old_helper_does_nothing_beside_the_plan(helper, home_fd):
    takes(helper, "1-1")
    with pytest.raises(HostError, match="--save in setuid mode needs a newer sandbox-helper"):
        setuid.acceptable(a_plan(), home_fd, ["--save"])
    with pytest.raises(HostError, match="--log-format json in setuid mode needs a newer sandbox-helper"):
        setuid.acceptable(a_plan(), home_fd, launch.beside_the_plan(Spec(log_format="json")))
    assert setuid.acceptable(a_plan(), home_fd, launch.beside_the_plan(Spec()))[1] == 1
    takes(helper, "1-2")
    os.utime(helper, (1, 1))
    assert setuid.acceptable(a_plan(), home_fd, ["--save"])[1] == 2


def test_an_old_helper_does_without_what_is_optional(helper, home_fd, monkeypatch):
    takes(helper, "1-1")
    monkeypatch.setattr(versions, "SINCE", (versions.Since(PlanFlag.LEAVE_RUNNING, 2, "it", optional=True),))
    plan, version = setuid.acceptable(a_plan(), home_fd)
    assert (plan, version) == (a_plan().replace(flags=PlanFlag(0)), 1)
    with pytest.raises(codec.PlanError):
        codec.encode(a_plan(), 1)
    monkeypatch.setattr(versions, "SINCE", (versions.Since(PlanFlag.LEAVE_RUNNING, 2, "it"),))
    with pytest.raises(HostError, match="it in setuid mode needs a newer"):
        setuid.acceptable(a_plan(), home_fd)


# -- the policy -----------------------------------------------------------------------------------------------


def test_the_default_policy_is_understood_by_any_parser():
    text = policy.template(groups=[995, 996], uid=7, gid=8)
    values, wrong = policy.parse(text.encode())
    assert wrong == []
    assert values == tomllib.loads(text)
    assert (values["groups"], values["builder_uid"], values["builder_gid"]) == ([995, 996], 7, 8)
    assert (values["images"], values["allow_new_privs"], values["store"]) == ("rebuild", False, "/var/lib/sandbox")
    assert values.keys() == policy._KEYS.keys()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", None),
        ("[limits]\nimage_bytes = 5", None),
        ('trusted_directories = ["/a", "/b#"] # why', None),
        ("groups = [", "cannot be parsed"),
        ("imags = 1", "no such key"),
        ('images = "all"', "images: must be one of"),
        ('groups = ["sandbox"]', "numeric groups"),
        ("groups = [-1]", "numeric groups"),
        ("groups = [true]", "numeric groups"),
        ("groups = [4294967295]", "numeric groups"),
        ("builder_uid = 0", "not root's"),
        ('store = "relative"', "absolute path"),
        ('trusted_directories = ["/a/../b"]', "absolute path"),
        ("allow_new_privs = 1", "must be true or false"),
        ("allow_new_privs = true", None),
        ("loop_devices = true", "must be a number"),
        ('[limits]\nimages = "any"', "no such key"),
        # TOML, but not the helper's subset.
        ("groups = [\n1]", "line 1"),
        ("images = 'any'", "line 1"),
        ("image_bytes = 1_000", "line 1"),
        ("a.b = 1", "line 1"),
        ("\xff", None),
    ],
)
def test_what_is_wrong_with_a_policy(text, words):
    raw = text.encode("latin-1")
    wrong = policy.parse(raw)[1]
    if text == "\xff":
        assert "cannot be parsed" in wrong[0]
    elif words is None:
        assert wrong == []
    else:
        assert words in "; ".join(wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('images = "any"', True),
        ('\t images="any" # why', True),
        ('# images = "any"', False),
        ('images = "rebuild" # not "any"', False),
        ("", False),
        (None, False),
    ],
)
def test_whether_any_image_is_mounted(tmp_path, monkeypatch, text, expected):
    path = tmp_path / "policy.toml"
    monkeypatch.setattr(setuid, "POLICY", str(path))
    if text is not None:
        path.write_text(f"groups = [1]\n{text}\n")
    assert setuid.shows_any_image() is expected


def test_no_doctor_check_is_without_remedy():
    for check in setuid_status.examine():
        assert bool(check.remedy) is not check.ok, check


# -- the profile ----------------------------------------------------------------------------------------------


def test_the_profile_is_the_packaged_one():
    assert (REPOSITORY / "packaging" / "apparmor" / "sandbox-helper").read_text() == apparmor.PROFILE
    assert f"profile sandbox-helper {setuid.HELPER} " in apparmor.PROFILE


# -- the journal ----------------------------------------------------------------------------------------------


@pytest.fixture
def log(session_area, area):
    """A journal in a place of its own. /var/tmp is writable by all, so the safety of what is above is not asked."""
    store = area.path / "store"
    store.mkdir(mode=0o755)
    with fsops.closing(os.open(store, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        yield journal.Journal(fd)


@pytest.fixture
def anywhere(monkeypatch):
    monkeypatch.setattr(journal, "open_system_dir", lambda path: os.open(path, os.O_RDONLY | os.O_DIRECTORY))


def entries(log):
    return [entry["what"] for entry in json.loads(fsops.read_file(log.fd, journal.RECORD))["entries"]]


@NEEDS_ROOT
@pytest.mark.usefixtures("anywhere")
def test_files_and_directories_come_and_go(log, area):
    said = []
    path = area.path / "made" / "program"
    assert log.file(str(path), b"one", mode=0o4750)
    assert stat.S_IMODE(path.stat().st_mode) == 0o4750
    assert entries(log) == ["directory", "file"]
    assert not log.file(str(path), b"one", mode=0o4750), "nothing to do the second time"
    kept = os.open(path, os.O_RDONLY)
    assert log.file(str(path), b"two", mode=0o4750)
    assert stat.S_IMODE(os.fstat(kept).st_mode) == 0, "a hard link to the old program is no setuid program any more"
    os.close(kept)
    for entry in reversed(log.entries[:]):
        (log.undo_file if entry["what"] == "file" else log.undo_directory)(entry, say=said.append)
    assert not path.parent.exists()
    assert len(said) == 2


@NEEDS_ROOT
@pytest.mark.usefixtures("anywhere")
def test_what_somebody_else_put_there_stays(log, area):
    said = []
    theirs = area.path / "theirs"
    theirs.write_text("theirs")
    with pytest.raises(HostError, match="not from sandbox setuid install"):
        log.file(str(theirs), b"ours", mode=0o644)
    ours = area.path / "made" / "policy"
    log.file(str(ours), b"ours", mode=0o644)
    ours.write_text("changed by the administrator")
    log.undo_file(log.entries[1], say=said.append)
    log.undo_directory(log.entries[0], say=said.append)
    assert ours.read_text() == "changed by the administrator"
    assert all(line.startswith("kept ") for line in said)


@NEEDS_ROOT
@pytest.mark.usefixtures("anywhere")
def test_it_is_recorded_before_it_is_done(log, area, monkeypatch):
    def fail(*_args, **_options):
        raise InterruptedError

    save = log.save
    monkeypatch.setattr(fsops, "make_new_dir", fail)
    with pytest.raises(InterruptedError):
        log.directory(str(area.path / "never"))
    assert entries(log) == ["directory"]
    save()


@NEEDS_ROOT
@pytest.mark.parametrize("wrong", ["writable", "link", "foreign"])
def test_a_way_that_others_can_change_is_refused(wrong, monkeypatch):
    top = Path("/root") / f"sbx-tests-{os.urandom(4).hex()}"
    top.mkdir(mode=0o755)
    inner = top / "inner"
    inner.mkdir(mode=0o755)
    try:
        os.close(journal.open_system_dir(str(inner)))
        if wrong == "writable":
            inner.chmod(0o775)
        elif wrong == "foreign":
            os.chown(inner, 12345, 0)
        else:
            inner.rmdir()
            inner.symlink_to("/etc")
        with pytest.raises(HostError) as error:
            journal.open_system_dir(str(inner))
        assert str(inner) in str(error.value)
        assert setuid_status.unsafe_parents(str(inner / "file"))
    finally:
        inner.unlink() if inner.is_symlink() else inner.rmdir()
        top.rmdir()


def test_a_record_of_another_version_is_not_guessed_at(tmp_path):
    for text in ('{"format": 2, "entries": []}', "{", "[]"):
        (tmp_path / "setuid-install.json").write_text(text)
        with fsops.closing(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)) as fd, pytest.raises(HostError):
            journal.Journal(fd)
