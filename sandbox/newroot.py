"""Level strict: a root directory that holds nothing of the host but what a command needs to start at all."""

import os
import stat
from typing import TYPE_CHECKING

from sandbox.errors import HostError, reason, remedy
from sandbox.isolation import HOSTNAME, LOCKED, RUN_DIRECTORY, SAFE, Level, Surroundings
from sandbox.level_steps import Bind, File, NewRoot, PivotRoot, Procdir, Symlink, Text
from sandbox.plan import Attach, Guard, Mkdir
from sandbox.plan_types import Base, Place
from sandbox.record import Record

if TYPE_CHECKING:
    from sandbox.spec import Spec

SHARED = (b"/tmp", b"/var/tmp")
_TOP = (b"/bin", b"/sbin", b"/lib", b"/lib32", b"/lib64", b"/libx32")
# Of /etc: what links of /usr lead through (Debian), and the certificates that TLS trusts (Debian, Fedora).
_OF_ETC = (
    b"/etc/alternatives",
    b"/etc/ld.so.cache",
    b"/etc/localtime",
    b"/etc/ssl/certs",
    b"/etc/pki/tls/certs",
    b"/etc/pki/ca-trust/extracted",
)
_MOST = 1 << 16
# All that is looked at to make one, links not followed, and whom the user's name comes from.
PARTS = (b"/usr", *_TOP, *_OF_ETC)
NAMES = (b"/etc/passwd", b"/etc/nsswitch.conf")
RESOLVER = b"/etc/resolv.conf"


class Shown(Record):
    """Something of the host that the new root shows at its own path, read-only."""

    place: Place
    is_directory: bool


class HostRoot(Record):
    """What the new root is built of: things of the host, links (path and target), the name of who calls."""

    shown: tuple[Shown, ...] = ()
    links: tuple[tuple[bytes, bytes], ...] = ()
    user: bytes = b""


def host_root() -> HostRoot:
    """What there is of it on this host. Raises HostError where that is no /usr."""
    shown, links = [], []
    usr = _look(b"/usr")
    if usr is None:
        raise HostError("--isolation strict: this host has no /usr", hint="--root IMAGE|DIR")
    for path in PARTS[1:]:
        if os.path.islink(path):
            links.append((path, os.readlink(path)))
        elif (found := _look(path)) is not None:
            shown.append(found)
    return HostRoot((usr, *shown), tuple(links), _user_name(os.getuid()))


def _look(path: bytes) -> Shown | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return Shown(Place(Base.ROOT, path, status.st_dev, status.st_ino), stat.S_ISDIR(status.st_mode))


def resolver(spec: "Spec") -> bytes:
    """The host's resolv.conf for who uses the host's network, and none for who has none."""
    nothing = b"# no network\n"
    if spec.net != "host":
        return nothing
    try:
        with open(RESOLVER, "rb") as file:
            return file.read(_MOST) or nothing
    except FileNotFoundError:
        return nothing
    except OSError as error:
        raise HostError(f"cannot read /etc/resolv.conf: {reason(error)}", hint=remedy(error)) from None


def _user_name(uid: int) -> bytes:
    import pwd

    try:
        name = os.fsencode(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return b"sandbox"
    return b"sandbox" if set(name) & set(b":\n") else name


class StrictLevel(Level):
    """Nothing of the host's tree is locked or hidden: it is not there."""

    def lock(self) -> None:
        self.enter()
        for path in (b"/proc", b"/dev"):
            self.mkdir(path, 0o755)
        self.private(b"/run", 0o755)
        self.mkdir(RUN_DIRECTORY, 0o700)
        self.add(Procdir(Place(Base.ROOT, RUN_DIRECTORY)))
        for path in self.where.shared:
            self.private(path, 0o1777)
        if self.where.home not in self.where.shared:
            self.private(self.where.home, 0o700)
        if self.where.image is not None and self.spec.net == "host":
            self.show_resolver()

    def enter(self) -> None:
        """Make the new root, of things of the host or of an image."""
        assert self.where.root is not None
        if self.where.image is None:
            self.add(NewRoot(self.builder.tmpfs(mode=0o755), SAFE))
            self.fill(self.where.root)
            return
        slot, overlay = self.ground(self.where.image, writable=True)
        if overlay:
            # Its layers are attached in a procdir, and the one for the command lies in the new root.
            self.add(Guard())
            self.add(Attach(self.builder.tmpfs(), Place(Base.PROCDIR, b""), SAFE))
            slot = self.builder.overlay(slot)
        self.add(NewRoot(slot, SAFE))

    def show_resolver(self) -> None:
        place = Place(Base.ROOT, RESOLVER)
        self.add(Text(slot := self.builder.slot(), 0o644, resolver(self.spec)))
        self.builder.steps += [File(place, 0o644, b""), Attach(slot, place, LOCKED)]

    def fill(self, root: HostRoot) -> None:
        for path, target in root.links:
            self.add(Symlink(Place(Base.ROOT, path), target))
        for path, content in self.names(root.user):
            self.add(File(Place(Base.ROOT, path), 0o644, content))
        for place, is_directory in root.shown:
            slot = self.builder.slot()
            self.add(Bind(slot, place))
            point = place.replace(dev=0, ino=0)
            self.add(Mkdir(point, 0o755) if is_directory else File(point, 0o644, b""))
            self.add(Attach(slot, point, LOCKED))

    def names(self, user: bytes) -> tuple[tuple[bytes, bytes], ...]:
        """Files of /etc that say who and where the command is."""
        home, host = self.where.home, self.spec.hostname or HOSTNAME
        uid, gid = self.where.ids or (self.builder.host.uid, self.builder.host.gid)
        user = user if self.where.ids is None else b"sandbox"
        users = [b"root:x:0:0:root:/root:/bin/sh", b"nobody:x:65534:65534:nobody:/:/bin/false"]
        groups = [b"root:x:0:", b"tty:x:5:", b"nogroup:x:65534:"]
        if uid != 0:
            users.append(b"%s:x:%d:%d::%s:/bin/sh" % (user, uid, gid, home.replace(b":", b"_").replace(b"\n", b"_")))
            groups.append(b"%s:x:%d:" % (user, gid))
        known = b"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n" % host
        return (
            (b"/etc/passwd", b"\n".join(users) + b"\n"),
            (b"/etc/group", b"\n".join(groups) + b"\n"),
            (b"/etc/hosts", known),
            (b"/etc/hostname", host + b"\n"),
            (b"/etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\nservices: files\n"),
            (RESOLVER, resolver(self.spec)),
        )

    def mkdir(self, path: bytes, mode: int) -> None:
        self.add(Mkdir(Place(Base.ROOT, path), mode))

    def private(self, path: bytes, mode: int) -> None:
        self.mkdir(path, 0o755)
        super().private(path, mode)

    def enclose(self) -> None:
        super().enclose()
        self.add(PivotRoot(int(self.where.image is None or self.spec.root_ro)))


def surroundings(spec: "Spec", where: Surroundings) -> Surroundings:
    """The same for a root of its own: everything is covered, and only what this module names is there."""
    root = host_root() if spec.root is None else HostRoot()
    return where.replace(shared=SHARED, homes=(), hidden=(), root=root)
