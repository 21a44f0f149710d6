"""Every case on every engine in every mode that this machine supports; a combination that did not run fails."""

import os
from pathlib import Path

import pytest

from sandbox import host
from tests.conformance import erofs, fences, isolation, stacks, strict
from tests.conformance.cases import CASES, Case, make_inputs
from tests.support import internet, modes, reports, users

_KERNEL = tuple(map(int, os.uname().release.split(".")[:2]))
COMBINATIONS = [
    ("python", "root"),
    ("python", "userns"),
    ("native", "root"),
    ("native", "userns"),
    ("native", "setuid"),
]


@pytest.fixture(scope="module")
def inputs(session_area, identities):
    """Read-only inputs of all cases, with a path of the same length everywhere."""
    where = session_area / "conformance"
    where.mkdir(mode=0o755)
    make_inputs(where)
    stacks.make_inputs(where, identities[True].uid, identities[True].gid)
    strict.make_inputs(where)
    erofs.make_inputs(where)
    return where


def _one_id(case: Case, mode: str, who: users.Identity) -> str:
    """Why there is no more than one id; empty where there are more."""
    if mode == "root" and "--root" in case.options and not (_KERNEL >= host.SQUASHFS_IDMAP and host.may_map_ids()):
        return "before Linux 6.2, or without user namespaces, the files of an image have one owner in a job of root's"
    return users.no_subordinates(who) if mode == "userns" else ""


def _obstacle(case: Case, inputs: Path) -> str:
    """Why a case cannot be had on this machine, in no mode."""
    if case in erofs.CASES:
        return erofs.obstacle(inputs)
    return internet.obstacle() if case.internet else ""


def _as_here(case: Case, mode: str) -> Case:
    """Where user namespaces are off, what root needs one for is refused with the line that says so."""
    needs = "--as-root" in case.options or "rw" in case.options
    if mode == "root" and needs and not host.may_map_ids():
        return case._replace(refused_in=mode, refusal="sysctl user.max_user_namespaces=15000", cause="", log="")
    return case


@pytest.mark.parametrize(
    "case",
    [*CASES, *erofs.CASES, *fences.CASES, *isolation.CASES, *stacks.CASES, *strict.CASES],
    ids=lambda case: case.name,
)
@pytest.mark.parametrize(("engine", "mode"), COMBINATIONS, ids=lambda value: value)
def test_case(engine, mode, case: Case, inputs: Path, run_sandbox, area, identities, ran, request):
    if why := _obstacle(case, inputs):
        pytest.skip(why)
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")
    else:
        modes.require(engine, mode, identities[True])
    as_user = mode != "root"
    who = identities[as_user]
    if case.internet:
        run_sandbox.system = internet.Internet((), run_sandbox.system)
    if case.many_ids and (why := _one_id(case, mode, who)):
        pytest.skip(why)
    case = _as_here(case, mode)
    own = area.dir(as_user)

    def fill(text: str) -> str:
        return text.replace("{d}", str(inputs)).replace("{w}", str(own))

    argv = case.argv if case.script is None else ("sh", "-c", case.script)
    env = {"EXPECT_UID": str(who.uid), "EXPECT_GID": str(who.gid), "EXPECT_PWD": str(own), **case.env}
    log = ["--log", str(own / "log")] if case.log else []
    report = ["--report", str(own / "report.json")] if case.cause else []
    command = [
        "run",
        "--engine",
        engine,
        "--mode",
        mode,
        *report,
        *log,
        *map(fill, case.options),
        "--",
        *map(fill, argv),
    ]
    stdin = "input\n" if case.name.endswith("stdin") else None
    done = run_sandbox(command, as_user=as_user, env=env, input=stdin, cwd=case.cwd and fill(case.cwd))
    if mode in case.refused_in.split():
        case = case._replace(stdout="", code=125, stderr=case.refusal)
    assert (done.stdout, done.returncode) == (case.stdout, case.code), done.stderr
    assert case.stderr in done.stderr
    if case.code == 125:
        assert len(done.stderr.splitlines()) == 1, "a mistake is explained in one line"
    if case.cause:
        told = reports.read(own / "report.json")
        assert " ".join(filter(None, (told["cause"], told["limit"]))) == case.cause
        assert (told["mode"] or mode, told["engine"] or engine) == (mode, engine)
    if case.log:
        assert sorted((own / "log").read_text().splitlines()) == sorted(case.log.splitlines())
    assert not [name for name in os.listdir(own) if name.startswith("sandbox-") and name != "sandbox-home"]
    ran(engine, mode)
