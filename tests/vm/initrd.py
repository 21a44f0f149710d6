"""The first programs of a boot, which find the disks and start the root: a gzipped cpio, as the kernel wants it."""

import gzip
import lzma
import stat
from pathlib import Path

from tests.vm.packages import Kernel

_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "virtio_console")
_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module || echo "vm: cannot load $module"; done
while [ ! -b /dev/vdc ]; do sleep 0.1; done
mount -t ext4 -o noatime /dev/vda /root
mkdir -p /root/usr/lib/modules
mount -t ext4 -o ro /dev/vdb /root/usr/lib/modules
mount -t ext4 -o noatime /dev/vdc /root/srv/sandbox
for name in proc sys dev; do mount --move /$name /root/$name; done
case $(cat /root/proc/cmdline) in
*vm.systemd*)
    cp /root/srv/sandbox/tests/vm/guest.service /root/etc/systemd/system/
    exec switch_root /root /lib/systemd/systemd --unit=guest.service ;;
*) exec switch_root /root /usr/bin/python3 -I /srv/sandbox/tests/vm/guest.py ;;
esac
"""


def make(kernel: Kernel, busybox: Path, target: Path) -> None:
    """Everything in it belongs to root; modules are stored unpacked, because busybox does not unpack them."""
    order, modules = [], kernel.directory / "modules"
    files = {"init": _INIT.encode(), "bin/busybox": busybox.read_bytes()}
    for path in _with_dependencies(modules):
        name = path.name.split(".ko")[0] + ".ko"
        order.append(name)
        data = path.read_bytes()
        files[f"modules/{name}"] = lzma.decompress(data) if path.suffix == ".xz" else data
    files["modules/order"] = "\n".join(order).encode()
    directories = ["bin", "modules"]
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in directories]
    entries += [(name, stat.S_IFREG | 0o755, data) for name, data in files.items()]
    target.write_bytes(gzip.compress(_cpio(entries), 1))


def _with_dependencies(modules: Path) -> list[Path]:
    """Files of _MODULES, each after what it needs; those built into the kernel are not listed."""
    needs = dict(line.split(":") for line in (modules / "modules.dep").read_text().splitlines())
    found: list[str] = []
    for wanted in _MODULES:
        for path, before in needs.items():
            if Path(path).name.split(".ko")[0] == wanted:
                # modules.dep lists what is needed last first (modules.dep(5)).
                found += [name for name in (*reversed(before.split()), path) if name not in found]
    return [modules / path for path in found]


def _cpio(entries: list[tuple[str, int, bytes]]) -> bytes:
    parts = [_cpio_entry(number, *entry) for number, entry in enumerate(entries, 1)]
    return b"".join([*parts, _cpio_entry(0, "TRAILER!!!", 0, b"")])


def _cpio_entry(number: int, name: str, mode: int, data: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return b"".join(part + b"\0" * (-len(part) % 4) for part in (head, data))
