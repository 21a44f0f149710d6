"""A Debian root made by mmdebstrap, as an image and as a directory, used by anybody and by root in it. For make soak:
it takes a minute, a mirror of Debian, and is kept in the user's cache for the next time.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import users

pytestmark = [
    pytest.mark.skipif("SANDBOX_SOAK" not in os.environ, reason="a Debian root is made by make soak only"),
    pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="needs mmdebstrap (make test-vm installs it)"),
]
CONTROL = "Package: box\nVersion: 1\nArchitecture: all\nMaintainer: sandbox <root@localhost>\nDescription: a box\n"
# As packages do: files for a user and a group of the distribution's, a new user, and a program that becomes one.
POSTINST = """#!/bin/sh -e
useradd -r boxd
chown boxd:shadow /opt/box && chmod 640 /opt/box
su -s /bin/sh boxd -c 'cat /opt/box >/tmp/as-boxd'
"""
INSTALL = (
    "apt-get install -y /box.deb >/tmp/log 2>&1 || cat /tmp/log; cat /opt/box; id -u;"
    "cat /tmp/as-boxd; stat -c %U:%G:%a /opt/box /tmp/as-boxd /etc"
)
INSTALLED = "installed\n0\ninstalled\nboxd:shadow:640\nboxd:boxd:644\nroot:root:755\n"
# The user that apt downloads as may do nothing in a user namespace of one id.
OF_ONE_ID = (
    "apt-get -o APT::Sandbox::User=root install -y /plain.deb >/tmp/log 2>&1 || cat /tmp/log; cat /opt/box; id -u"
)


class Debian(NamedTuple):
    directory: Path
    image: Path
    package: Path
    plain: Path


@pytest.fixture(scope="module")
def debian(session_area):
    """Readable by every user: who may not read it all cannot have a copy of a directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sandbox-tests"
    archive, where = cache / "bookworm.tar", session_area / "debian"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = archive.with_suffix(f".{os.getpid()}.tar")
        subprocess.run(["mmdebstrap", "--variant=apt", "--quiet", "bookworm", part], check=True)
        part.rename(archive)
    made = Debian(where / "root", where / "root.sfs", where / "box.deb", where / "plain.deb")
    made.directory.mkdir(parents=True)
    subprocess.run(["tar", "-xpf", archive, "--exclude=./dev/*", "-C", made.directory], check=True)
    subprocess.run(["chmod", "-R", "a+rX", made.directory], check=True)
    subprocess.run(["mksquashfs", made.directory, made.image, "-quiet", "-no-progress", "-comp", "lz4"], check=True)
    content = where / "package"
    (content / "DEBIAN").mkdir(parents=True)
    (content / "opt").mkdir()
    (content / "DEBIAN" / "control").write_text(CONTROL)
    (content / "opt" / "box").write_text("installed\n")
    for package in (made.plain, made.package):
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", content, package], check=True, capture_output=True)
        (content / "DEBIAN" / "postinst").write_text(POSTINST)
        (content / "DEBIAN" / "postinst").chmod(0o755)
    yield made
    shutil.rmtree(where)


@pytest.mark.parametrize("kind", ["image", "directory"])
def test_commands_of_a_debian_root(launch, debian, kind):
    options = ("--isolation", "strict", "--root", getattr(debian, kind))
    done = launch(*options, "--", "sh", "-c", "cat /etc/debian_version; dpkg -l | grep -c ^ii; rm -r /usr/share/doc")
    version, packages = done.stdout.split()
    assert version.startswith("12."), done.stderr
    assert int(packages) > 50
    assert (debian.directory / "usr" / "share" / "doc").is_dir()
    done = launch(*options, "--root-ro", "--", "sh", "-c", "touch /etc/x")
    assert "Read-only" in done.stderr


@pytest.mark.parametrize("kind", ["image", "directory"])
def test_a_package_is_installed_by_root_inside(launch, debian, user, kind):
    options = ("--isolation", "strict", "--root", getattr(debian, kind), "--ro-bind", f"{debian.package}:/box.deb")
    if launch.mode == "userns" and (why := users.no_subordinates(user)):
        pytest.skip(why)
    done = launch(*options, "--as-root", "--", "sh", "-c", INSTALL)
    if launch.mode == "setuid":
        assert (done.returncode, "--as-root" in done.stderr) == (125, True)
        return
    assert (done.stdout, done.returncode) == (INSTALLED, 0), done.stderr
    assert not (debian.directory / "opt" / "box").exists()


def test_a_package_is_installed_with_one_id(launch, debian):
    """As where there are no subordinate ids: what is to be saved is of one owner."""
    if launch.mode == "setuid":
        pytest.skip("mode setuid has no --as-root")
    words = ("--ro-bind", f"{debian.plain}:/plain.deb", "--dynamic-empty", "new", "--save", "new=box")
    options = ("--isolation", "strict", "--root", debian.image, *words, "-v")
    done = launch(*options, "--as-root", "--", "sh", "-c", OF_ONE_ID)
    assert (done.stdout, done.returncode) == ("installed\n0\n", 0), done.stderr
    assert "one id inside" in done.stderr
