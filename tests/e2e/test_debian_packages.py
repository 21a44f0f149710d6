"""The Debian packages in a real Debian root: installed, used by ordinary users with and without user namespaces,
upgraded while sandboxes run, purged. For make soak: it compiles everything and makes the root.
"""

import filecmp
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox import __version__
from sandbox.setuid import HELPER
from tests.e2e.test_packages import build
from tests.support.debian_system import DebianRoot, entered

pytestmark = [
    pytest.mark.skipif("SANDBOX_SOAK" not in os.environ, reason="a Debian root is made by make soak only"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to install packages in a root of its own"),
    *(
        pytest.mark.skipif(shutil.which(name) is None, reason=f"needs {name} (make deb installs it)")
        for name in ("mmdebstrap", "dh", "cargo", "lintian")
    ),
]
OLD = "0.0.9"
assert len(OLD) == len(__version__)
# What there is but for logs, caches and what dpkg and users themselves keep.
KEPT = "/proc /sys /dev /run/lock /srv /home /root /tmp /var/tmp /var/log /var/cache /var/lib/dpkg /var/lib/apt"
FILES = f"""for kept in {KEPT}; do set -- "$@" -path $kept -o; done
    find / /run -xdev '(' "$@" -name '*-' -o -name .pwd.lock ')' -prune -o -printf '%p %u %g %m %l\\n' | sort
    sort /etc/passwd /etc/group /etc/shadow /etc/gshadow
    dpkg-statoverride --list || :"""
INSTALL = "apt-get install -y --no-install-recommends --allow-downgrades"
HELPERS = f"stat -c '%U %G %a' {HELPER}"
IMAGE = "mkdir -p t; echo inside >t/f; python3 -m zipfile -c t.zip t/; python3 -m zipfile -l t.zip >/dev/null"
SHOWN = "-s t:t.zip -- sh -c 'cat $SANDBOX_STATIC/t/t/f'"


def aged(package: Path, where: Path) -> Path:
    """The package as if of an earlier version, which its programs and Python say, too."""
    content = where / "content"
    subprocess.run(["dpkg-deb", "-R", package, content], check=True)
    control = content / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {OLD}", control.read_text()))
    for file in (path for path in content.rglob("*") if path.is_file() and not path.is_symlink()):
        if file.name in ("sandbox-engine", "sandbox-helper") or file.match("sandbox/__init__.py"):
            file.write_bytes(file.read_bytes().replace(__version__.encode(), OLD.encode()))
    made = where / package.name.replace(__version__, OLD)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", content, made], check=True, capture_output=True)
    shutil.rmtree(content)
    return made


@pytest.fixture(scope="module")
def packages(session_area):
    """The directory with the packages of this version and of the earlier one."""
    where = session_area / "debs"
    where.mkdir()
    for package in build("deb", where):
        aged(package, where)
    yield where
    shutil.rmtree(where)


def depends(package: Path) -> list[str]:
    """The first of the alternatives of each, without systemd itself."""
    line = subprocess.run(["dpkg-deb", "-f", package, "Depends"], check=True, capture_output=True, text=True).stdout
    names = [re.split(r"[ :(|]", part.strip())[0] for part in line.split(",")]
    return ["systemd-standalone-sysusers" if name == "systemd" else name for name in names]


@pytest.fixture(scope="module")
def debian(packages, session_area):
    """Has what the packages depend on, since no network is to be had in there, and nothing of theirs."""
    wanted = {name for package in packages.glob(f"*_{__version__}_*") for name in depends(package)}
    with entered(session_area / "debian-root", *sorted(wanted)) as root:
        root.put(*packages.glob("*.deb"))
        root.run("for user in alice bob; do useradd --create-home --shell /bin/sh $user; done")
        yield root


@pytest.fixture
def installed(debian):
    """Both packages, purged afterwards."""
    before = debian.run(FILES)
    install(debian)
    debian.run("usermod --append --groups sandbox alice")
    yield debian
    debian.run("apt-get purge -y sandbox sandbox-setuid")
    after = debian.run(FILES)
    assert set(after.splitlines()) ^ set(before.splitlines()) == set()


def install(debian: DebianRoot, version: str = __version__, *options: str) -> str:
    words = " ".join(options)
    return debian.run(f"{INSTALL} {words} /srv/sandbox_{version}_*.deb /srv/sandbox-setuid_{version}_*.deb")


def test_lintian_and_the_same_bytes_again(packages, area):
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on=error,warning", *packages.glob(f"*_{__version__}_*")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
    for again in build("deb", area.path / "again", CARGO_TARGET_DIR=str(area.path / "cargo")):
        assert filecmp.cmp(again, packages / again.name, shallow=False)


def test_every_mode_works_for_a_user(installed):
    assert installed.run(HELPERS) == "root sandbox 4750\n"
    installed.run("sandbox setuid status")
    installed.run("sandbox-run run --engine native -- true")
    assert installed.run("sandbox run --mode userns -- id -un", user="alice") == "alice\n"
    assert installed.run(f"{IMAGE}; sandbox run --mode userns {SHOWN}", user="bob") == "inside\n"
    job = "sandbox run --mode userns --isolation job -- sh -c 'echo $$'"
    assert installed.run(job, user="bob") == "2\n"
    assert installed.run('python3 -c \'from sandbox import run; run(["echo", "api"])\'', user="bob") == "api\n"
    assert "man1/sandbox.1" in installed.run("dpkg -L sandbox")


def test_setuid_where_no_user_namespace_is_to_be_had(installed):
    as_alice = {"user": "alice", "userns": False}
    installed.run("unshare --user true", code=1, **as_alice)
    assert installed.run("sandbox run -- id -un", **as_alice) == "alice\n"
    told = installed.run("sandbox run --mode userns -- true", code=125, **as_alice)
    assert told.startswith("sandbox: ")
    assert "user.max_user_namespaces" in told
    installed.run("test -d t || mkdir t", **as_alice)
    assert installed.run(f"{IMAGE}; sandbox run --mode setuid {SHOWN}", **as_alice) == "inside\n"
    assert installed.run(f"sandbox run --mode setuid --cache {SHOWN}", **as_alice) == "inside\n"
    assert installed.run("ls /var/lib/sandbox").split() == [*installed.run("id -u alice").split(), "builder"]
    assert (
        installed.run("sandbox run --isolation job -- grep NoNewPrivs /proc/self/status", **as_alice).split()[1] == "1"
    )
    told = installed.run("sandbox run --mode setuid -- true", code=125, user="bob", userns=False)
    assert "only members of the group sandbox may use the setuid helper" in told
    installed.run("sandbox run -- true", code=125, user="bob", userns=False)


def test_an_override_of_the_administrators_stays(installed):
    installed.run(f"dpkg-statoverride --remove {HELPER}; dpkg-statoverride --update --add root root 0755 {HELPER}")
    install(installed, __version__, "--reinstall")
    assert installed.run(HELPERS) == "root root 755\n"
    installed.run("sandbox run --mode setuid -- true", code=125, user="alice")


def test_upgrade_while_sandboxes_run(installed):
    install(installed, OLD)
    installed.run("echo '# mine' >>/etc/sandbox/policy.toml")
    version = "/usr/libexec/sandbox/sandbox-helper version"
    assert installed.run(version, user="alice").split()[1] == OLD
    old = [
        installed.start(f"sandbox run {words} -- sh -c 'echo up; read x; echo $x'", stdin=subprocess.PIPE, **who)
        for words, who in (
            ("--mode setuid", {"user": "alice", "userns": False}),
            ("--mode userns", {"user": "bob"}),
            ("--mode root", {}),
        )
    ]
    assert [run.stdout.readline() for run in old] == ["up\n"] * 3
    # One of the two alone: neighbouring versions work together, in both directions.
    for package in ("sandbox", "sandbox-setuid"):
        installed.run(f"{INSTALL} -o Dpkg::Options::=--force-confdef /srv/{package}_{__version__}_*.deb")
        assert installed.run("sandbox run --mode setuid -- echo new", user="alice", userns=False) == "new\n"
    assert installed.run(version, user="alice").split()[1] == __version__
    assert installed.run(HELPERS) == "root sandbox 4750\n"
    assert installed.run("tail -n 1 /etc/sandbox/policy.toml") == "# mine\n"
    assert [run.communicate("over\n", timeout=60) for run in old] == [("over\n", "")] * 3
    install(installed, OLD)
    installed.run(f"{INSTALL} /srv/sandbox-setuid_{__version__}_*.deb")
    assert installed.run("sandbox run --mode setuid -- echo new", user="alice", userns=False) == "new\n"


def test_package_over_an_installation_by_hand(installed):
    installed.run(
        "apt-get remove -y sandbox-setuid; mkdir -p /var/lib/sandbox; touch /var/lib/sandbox/setuid-install.json"
    )
    told = installed.run(f"{INSTALL} /srv/sandbox-setuid_{__version__}_*.deb 2>&1", code=100)
    assert "sandbox setuid remove" in told
    installed.run("rm /var/lib/sandbox/setuid-install.json")
    install(installed)


def test_ids_that_were_there_before_stay(debian):
    """An administrator's own group with its members, and a user of the builder's name; also behind a removal."""
    debian.run("groupadd sandbox; usermod --append --groups sandbox bob; useradd --no-create-home _sandbox")
    before = debian.run(FILES)
    for words in ("purge", "remove"):
        install(debian)
        assert debian.run("sandbox run --mode setuid -- echo works", user="bob", userns=False) == "works\n"
        debian.run(f"apt-get {words} -y sandbox sandbox-setuid")
    install(debian)
    debian.run("apt-get purge -y sandbox sandbox-setuid")
    assert set(debian.run(FILES).splitlines()) ^ set(before.splitlines()) == set()
    debian.run("userdel _sandbox; groupdel sandbox")


def test_profiles_where_apparmor_has_rules_for_user_namespaces(installed):
    """The root has no AppArmor: what would be a file of version 4 appears and goes as that package's would."""
    links = "ls /etc/apparmor.d | grep sandbox || :"
    assert installed.run(links) == ""
    installed.run("mkdir -p /etc/apparmor.d/abi; touch /etc/apparmor.d/abi/4.0")
    installed.run("dpkg-trigger --by-package=apparmor /etc/apparmor.d/abi; dpkg --configure --pending")
    assert installed.run(links).split() == ["sandbox-engine", "sandbox-helper"]
    assert "profile sandbox-helper /usr/libexec/sandbox/sandbox-helper" in installed.run(
        "cat /etc/apparmor.d/sandbox-helper"
    )
    installed.run("apt-get remove -y sandbox sandbox-setuid")
    assert installed.run(links) == ""
    installed.run("rm -r /etc/apparmor.d")
