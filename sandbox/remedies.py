"""The exact command that puts something right, per family of distributions."""

import contextlib
import os
import shlex
from enum import Enum


class Family(Enum):
    """Distributions that share a package manager and package names."""

    DEBIAN = "apt-get install"
    FEDORA = "dnf install"
    # Many of the packages are in EPEL, whose own package makes it known.
    RHEL = "dnf install epel-release && dnf install"
    ARCH = "pacman -S"
    OTHER = ""


_FAMILIES = {
    "debian": Family.DEBIAN,
    "ubuntu": Family.DEBIAN,
    "fedora": Family.FEDORA,
    "rhel": Family.RHEL,
    "centos": Family.RHEL,
    "arch": Family.ARCH,
}
# What is missing: its package on Debian, Fedora, Arch.
_PACKAGES = {
    "squashfuse_ll": ("squashfuse", "squashfuse", "squashfuse"),
    "tar2sqfs": ("squashfs-tools-ng", "squashfs-tools-ng", "squashfs-tools-ng"),
    "sqfs2tar": ("squashfs-tools-ng", "squashfs-tools-ng", "squashfs-tools-ng"),
    "libarchive.so.13": ("libarchive13", "libarchive", "libarchive"),
    "python-prctl": ("libcap2", "libcap", "libcap"),
    "libseccomp.so.2": ("libseccomp2", "libseccomp", "libseccomp"),
    "slirp4netns": ("slirp4netns", "slirp4netns", "slirp4netns"),
    "pasta": ("passt", "passt", "passt"),
    "nft": ("nftables", "nftables", "nftables"),
    "newuidmap": ("uidmap", "shadow-utils", "shadow"),
    "newgidmap": ("uidmap", "shadow-utils", "shadow"),
}
_CONTAINER_OPTIONS = ("--security-opt seccomp=unconfined", "--security-opt apparmor=unconfined", "--cap-add SYS_ADMIN")
_ORDER = (Family.DEBIAN, Family.FEDORA, Family.ARCH)


def distribution(path: str = "/etc/os-release") -> Family:
    """From ID, then ID_LIKE (os-release(5))."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError), open(path) as file:
        for line in file:
            key, _, value = line.strip().partition("=")
            fields[key] = " ".join(shlex.split(value))
    for word in f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".split():
        if word in _FAMILIES:
            return _FAMILIES[word]
    return Family.OTHER


def run_as_root(command: str) -> str:
    """The command, with sudo where it is needed."""
    return command if os.geteuid() == 0 else f"sudo {command}"


def sysctl(name: str, value: str) -> str:
    """Set now; a file in /etc/sysctl.d keeps it over a boot (sysctl.d(5))."""
    return run_as_root(f"sysctl -w {name}={value}") + " (to keep it: the same in /etc/sysctl.d/sandbox.conf)"


def install(what: str, family: Family) -> str:
    """How to get a program, a library or the kernel's modules."""
    if what == "kernel-modules":
        return _kernel_modules(family)
    if family is Family.OTHER:
        return f"install the package that holds {what} ({_PACKAGES[what][0]} on Debian)"
    package = _PACKAGES[what][_ORDER.index(Family.FEDORA if family is Family.RHEL else family)]
    return " && ".join(run_as_root(command) for command in f"{family.value} {package}".split(" && "))


def _kernel_modules(family: Family) -> str:
    release = os.uname().release
    if family is Family.DEBIAN and release.endswith("-generic"):
        return run_as_root(f"apt-get install linux-modules-extra-{release}")
    if family is Family.DEBIAN:
        return run_as_root(f"apt-get install linux-image-{release}")
    if family in (Family.FEDORA, Family.RHEL):
        return run_as_root(f"dnf install kernel-modules-{release}")
    return "boot your distribution's own kernel, or build this one with it"


def allow_in_container() -> str:
    """What a container's filter or missing capability asks for."""
    if not _in_container():
        return "a security module or a seccomp filter forbids it: look at the kernel log (dmesg)"
    return f"start the container with {' '.join(_CONTAINER_OPTIONS)}"


def _in_container() -> bool:
    return "container" in os.environ or any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv")))
