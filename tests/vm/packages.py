"""A Debian root and Debian kernels, from the package source that this machine's apt uses."""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.support.install import REPOSITORY
from tests.vm import store

RELEASE = "bookworm"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Besides what packaging/setup.sh names for the tests.
_MORE = """
python3 python3-prctl python3-psutil kmod busybox-static systemd dbus-user-session udev apparmor e2fsprogs xfsprogs
btrfs-progs iproute2 crun podman gcc libc6-dev libfuse3-3 libcap2-bin make python3-pip
"""
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
# Drivers of hardware that the machine has not: most of a kernel package.
_NO_DRIVERS = "gpu media net/ethernet net/wireless staging iio infiniband scsi usb hwmon input isdn mtd"
_LINUX = re.compile(r"^linux-(image|modules|binary)-\d")


class Kernel(NamedTuple):
    """Where it was unpacked: `directory` holds vmlinuz, modules.ext4 and the modules that an initrd needs."""

    release: str
    directory: Path


def run(*command: str | Path, **options: object) -> str:
    """Output of a program. Raises BuildError with what it says when it does not succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        said = f"{done.stdout}{done.stderr}".strip()
        raise store.BuildError(f"{' '.join(map(str, command))}: exit {done.returncode}: {said}")
    return str(done.stdout)


@functools.cache
def mirror() -> str:
    """The address of Debian's packages, as this machine's own apt knows it; SANDBOX_VM_MIRROR replaces it."""
    if given := os.environ.get("SANDBOX_VM_MIRROR"):
        return given
    listing = run("apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages")
    for line in listing.splitlines():
        origin, codename, uri = line.split(maxsplit=2)
        if origin == "Debian" and "-" not in codename:
            return uri
    raise store.BuildError(
        "this machine's apt has no source of Debian's packages: set SANDBOX_VM_MIRROR to the URI of one"
    )


def make_disk(source: Path, target: Path, *, spare: int = 64 << 20) -> None:
    """An ext4 image with the content of a directory and some room. Sparse."""
    content = sum(entry.lstat().st_size + 4096 for entry in source.rglob("*") if not entry.is_dir())
    size = int(content * 1.15) + spare
    run("mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-d", source, target, f"{size >> 10}k")


# -- the root -------------------------------------------------------------------------------------------------


def _wanted() -> list[str]:
    """Debian's names in the table of packaging/setup.sh."""
    table = (REPOSITORY / "packaging/setup.sh").read_text().split("readonly needs='", 1)[1].split("'", 1)[0]
    return sorted({row.split("|")[1].strip() for row in table.splitlines() if "|" in row} | {*_MORE.split()})


def root() -> Path:
    """A directory with root.ext4 and busybox."""
    packages = _wanted()

    def make(where: Path) -> None:
        tree = where / "tree"
        print("vm: making the root", flush=True)
        excluded = [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
        source = f"deb [signed-by={_KEYRING}] {mirror()} {RELEASE} main"
        options = ["--variant=minbase", "--format=directory", f"--include={','.join(packages)}"]
        run("mmdebstrap", *options, *excluded, RELEASE, tree, source)
        for name in ("var/cache", "var/lib/apt"):
            shutil.rmtree(tree / name)
        (tree / "srv/sandbox").mkdir()
        shutil.copy(tree / "bin/busybox", where / "busybox")
        make_disk(tree, where / "root.ext4", spare=1 << 30)
        shutil.rmtree(tree)

    return store.kept("root", (packages, _LEFT_OUT, RELEASE), make)


# -- kernels --------------------------------------------------------------------------------------------------


def private_apt(where: Path, suite: str, *, kind: str = "deb") -> dict[str, str]:
    """An environment in which apt knows one suite (its sources: `deb-src`) and nothing of this machine's packages."""
    for name in ("etc/preferences.d", "lists/partial", "cache/archives/partial"):
        (where / name).mkdir(parents=True)
    (where / "etc/sources.list").write_text(f"{kind} [signed-by={_KEYRING}] {mirror()} {suite} main\n")
    options = {
        "Dir::Etc": where / "etc",
        "Dir::Etc::sourceparts": "none",
        "Dir::State": where,
        "Dir::State::lists": where / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": where / "cache",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "Acquire::Check-Valid-Until": "false",
        "APT::Sandbox::User": "root",
    }
    (where / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in options.items()))
    return {**os.environ, "APT_CONFIG": str(where / "apt.conf")}


def kernel(suite: str) -> Kernel:
    """The one that linux-image-amd64 of a suite stands for."""

    def make(where: Path) -> None:
        print(f"vm: fetching the kernel of {suite}", flush=True)
        apt = where / "apt"
        env = private_apt(apt, suite)
        run("apt-get", "update", "-q", env=env)
        without = ["--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces"]
        found = run("apt-cache", "depends", "--recurse", *without, "--no-enhances", "linux-image-amd64", env=env)
        names = sorted({line for line in found.splitlines() if _LINUX.match(line)})
        run("apt-get", "download", "-q", *names, env=env, cwd=apt)
        tree = where / "tree"
        for package in sorted(apt.glob("*.deb")):
            run("dpkg-deb", "-x", package, tree)
        _unpack(tree, where)
        shutil.rmtree(apt)
        shutil.rmtree(tree)

    where = store.kept(f"kernel-{suite}", (suite, _NO_DRIVERS.split()), make)
    return Kernel((where / "release").read_text(), where)


def tools(suite: str, names: tuple[str, ...]) -> Path:
    """Packages of another release, unpacked: they run with their own loader and libraries."""

    def make(where: Path) -> None:
        apt = where / "apt"
        env = private_apt(apt, suite)
        run("apt-get", "update", "-q", env=env)
        run("apt-get", "download", "-q", *names, env=env, cwd=apt)
        for package in sorted(apt.glob("*.deb")):
            run("dpkg-deb", "-x", package, where)
        shutil.rmtree(apt)
        for name in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/apparmor"):
            shutil.rmtree(where / name, ignore_errors=True)

    return store.kept(f"tools-{suite}", (suite, names), make)


def _unpack(tree: Path, where: Path) -> None:
    # Packages up to Debian 13 put them into /lib/modules and /boot, later ones all into /usr/lib/modules.
    modules = next(place for place in (tree / "lib/modules", tree / "usr/lib/modules") if place.exists())
    release = next(modules.iterdir()).name
    image = next(place for place in (tree / f"boot/vmlinuz-{release}", modules / release / "vmlinuz") if place.exists())
    shutil.move(image, where / "vmlinuz")
    (where / "release").write_text(release)
    for name in ("sound", *(f"drivers/{driver}" for driver in _NO_DRIVERS.split())):
        shutil.rmtree(modules / release / "kernel" / name, ignore_errors=True)
    if modules != tree / "lib/modules":
        (tree / "lib").mkdir(exist_ok=True)
        modules = modules.rename(tree / "lib/modules")
    run("depmod", "-b", tree, release, env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
    # An initrd is made from these at every run.
    shutil.copytree(modules / release, where / "modules")
    make_disk(modules, where / "modules.ext4", spare=16 << 20)
