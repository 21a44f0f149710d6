"""A FUSE file system with one file, `image`, that shows root as its owner; speaks the kernel's protocol itself.

    python3 fuse_server.py MOUNTPOINT UID FILE [OTHER]

Started as root it mounts like fusermount, then serves as UID; started as an ordinary user it mounts in a user namespace
of its own. With OTHER every second read comes from that file.
"""

import ctypes
import errno
import os
import struct
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)
_NOSUID_NODEV = 6
_NEWUSER_NEWNS = 0x10020000
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE = 1, 2, 3, 14, 15, 17, 18
_FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT, _BATCH_FORGET = 25, 26, 27, 28, 29, 36, 42
_DIRECT_IO = 1


def attributes(node: int, size: int) -> bytes:
    """`struct fuse_attr`: root's, and nobody else may write."""
    mode = 0o40755 if node == 1 else 0o100644
    return struct.pack("<6Q10I", node, size, size // 512, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


class Server:
    def __init__(self, fd: int, versions: list[bytes]) -> None:
        self.fd, self.versions, self.size, self.reads = fd, versions, len(versions[0]), 0

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self.fd, 1 << 17)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                continue
            _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
            if opcode not in (_FORGET, _BATCH_FORGET, _INTERRUPT):
                failed, body = self.answer(opcode, node, request[40:])
                os.write(self.fd, struct.pack("<IiQ", 16 + len(body), -failed, unique) + body)

    def answer(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes]:
        """An errno, and what follows it."""
        if opcode == _INIT:
            return 0, struct.pack("<IIIIHHIIHH8I", 7, 31, 1 << 16, 0, 8, 8, 1 << 16, 1, 16, 0, *[0] * 8)
        if opcode == _LOOKUP:
            if body.rstrip(b"\0") != b"image":
                return errno.ENOENT, b""
            return 0, struct.pack("<4Q2I", 2, 0, 60, 60, 0, 0) + attributes(2, self.size)
        if opcode == _GETATTR:
            return 0, struct.pack("<Q2I", 60, 0, 0) + attributes(node, self.size)
        if opcode in (_OPEN, _OPENDIR):
            return 0, struct.pack("<Q2I", 0, _DIRECT_IO if opcode == _OPEN else 0, 0)
        if opcode == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            self.reads += 1
            return 0, self.versions[self.reads % len(self.versions)][offset : offset + size]
        if opcode in (_FLUSH, _RELEASE, _RELEASEDIR, _READDIR):
            return 0, b""
        return (0, bytes(80)) if opcode == _STATFS else (errno.ENOSYS, b"")


def main() -> None:
    target, uid = sys.argv[1], int(sys.argv[2])
    versions = []
    for name in sys.argv[3:]:
        with open(name, "rb") as file:
            versions.append(file.read())
    if os.geteuid() != 0:
        maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{os.getgid()} {os.getgid()} 1"}
        if _LIBC.unshare(_NEWUSER_NEWNS) != 0:
            sys.exit("no user namespace")
        for name, text in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    fd = os.open("/dev/fuse", os.O_RDWR)
    gid = os.stat(target).st_gid
    options = f"fd={fd},rootmode=40000,user_id={uid},group_id={gid}".encode()
    if _LIBC.mount(b"sbx-tests", target.encode(), b"fuse", _NOSUID_NODEV, options) != 0:
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        # For /proc/PID/root, which a change of ids closes.
        _LIBC.prctl(4, 1, 0, 0, 0)
    print("ready", flush=True)
    Server(fd, versions).serve()


if __name__ == "__main__":
    main()
