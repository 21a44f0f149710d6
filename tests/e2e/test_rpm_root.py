"""The RPMs installed by rpm itself in a root of their own, used there, and erased. For make soak.

No distribution with RPMs is within the reach of these tests: the root is a Debian one, with what the packages require
under Debian's names, so dependencies are not checked. Files, owners, modes and scripts are rpm's own work.
"""

import os
import shutil
import subprocess

import pytest

from sandbox import __version__, policy
from sandbox.setuid import HELPER
from tests.e2e.test_debian_packages import FILES, IMAGE, SHOWN
from tests.e2e.test_packages import build
from tests.support.debian_system import entered

pytestmark = [
    pytest.mark.skipif("SANDBOX_SOAK" not in os.environ, reason="a Debian root is made by make soak only"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to install packages in a root of its own"),
    *(
        pytest.mark.skipif(shutil.which(name) is None, reason=f"needs {name} (make rpm installs it)")
        for name in ("mmdebstrap", "rpm", "rpmbuild", "cargo")
    ),
]
REQUIRED = (
    "init-system-helpers passwd python3 python3-libarchive-c python3-prctl python3-psutil python3-pyroute2"
    " python3-rich python3-seccomp squashfs-tools-ng systemd-standalone-sysusers"
)
# Where Debian's Python does not look, and Fedora's does.
SITE = "/usr/lib/python3.*/site-packages"
SEES_SITE = f"echo {SITE} >/usr/lib/python3/dist-packages/site.pth"
IDS = {"sandbox", "_sandbox"}


class Rpm:
    """rpm of this machine, working below a root: it enters that for scripts and for the names of owners."""

    def __init__(self, debian):
        self._root = ["rpm", "--root", debian.directory, "--dbpath", "/var/lib/rpm"]

    def __call__(self, *words, code=0):
        done = subprocess.run([*self._root, *words], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(session_area):
    where = session_area / "rpms"
    yield build("rpm", where)
    shutil.rmtree(where)


@pytest.fixture
def debian(session_area):
    with entered(session_area / "rpm-root", *REQUIRED.split()) as root:
        root.run("for user in alice bob; do useradd --create-home --shell /bin/sh $user; done")
        yield root


def install(rpm, made, *options):
    return rpm("--install", "--nodeps", "--force-debian", *options, *made)


def test_installed_used_and_erased(debian, made):
    rpm = Rpm(debian)
    rpm("--initdb")
    debian.run(f"mkdir -p {SITE.replace('*', '11')}; {SEES_SITE}")
    before = debian.run(FILES)
    assert install(rpm, made) == ""
    # rpm works from outside, where the root's /run is another: as the next boot makes it.
    debian.run("mkdir /run/sandbox")
    assert debian.run(f"stat -c '%U %G %a' {HELPER} {policy.PATH} {policy.BUILDER_DIRECTORY}").splitlines() == [
        "root sandbox 4750",
        "root root 644",
        "_sandbox _sandbox 0",
    ]
    # Every file as it was packed, by size, mode, owner and digest.
    assert rpm("--verify", "--nodeps", "sandbox", "sandbox-setuid") == ""
    _use(debian)
    assert debian.run("ls /var/lib/sandbox").split() == [*debian.run("id -u alice").split(), "builder"]
    debian.run(f"echo '# mine' >>{policy.PATH}")
    rpm("--upgrade", "--nodeps", "--force-debian", "--replacepkgs", *made)
    assert debian.run(f"tail -n 1 {policy.PATH}") == "# mine\n"
    assert debian.run("sandbox run --mode setuid -- echo again", user="alice", userns=False) == "again\n"
    rpm("--erase", "sandbox", "sandbox-setuid")
    debian.run("rm -r /run/sandbox")
    _gone(before, debian)


def _use(debian):
    debian.run("usermod --append --groups sandbox alice")
    assert __version__ in debian.run("sandbox --version; sandbox-run --version")
    debian.run("sandbox run --engine native -- true; sandbox run --engine python -- true; sandbox setuid status")
    as_alice = {"user": "alice", "userns": False}
    assert debian.run("sandbox run --mode userns --isolation job -- id -un", user="bob") == "bob\n"
    assert debian.run(f"{IMAGE}; sandbox run --mode setuid {SHOWN}", **as_alice) == "inside\n"
    assert debian.run(f"sandbox run --mode setuid --cache {SHOWN}", **as_alice) == "inside\n"
    told = debian.run("sandbox run --mode setuid -- true", code=125, user="bob", userns=False)
    assert "only members of the group sandbox" in told


def _gone(before, debian):
    """All but the ids, which files may still belong to, the administrator's own policy, and directories that are of
    other packages where RPMs are at home.
    """
    left = set(debian.run(FILES).splitlines()) - set(before.splitlines())
    files = {line.split()[0] for line in left if line.startswith("/") and not line.startswith("/var/lib/rpm")}
    files = {path for path in files if "sandbox" in path or not (debian.directory / path[1:]).is_dir()}
    assert files - {"/etc/sandbox"} == {f"{policy.PATH}.rpmsave"}
    assert {line.partition(":")[0] for line in left if ":" in line.split()[0]} == IDS


def test_not_over_an_installation_by_hand(debian, made):
    rpm = Rpm(debian)
    rpm("--initdb")
    debian.run("mkdir -p /var/lib/sandbox; touch /var/lib/sandbox/setuid-install.json")
    told = rpm("--install", "--nodeps", "--force-debian", *made, code=2)
    assert "run sandbox setuid remove" in told
    assert debian.run(f"test ! -e {HELPER}; ls /var/lib/sandbox") == "setuid-install.json\n"
