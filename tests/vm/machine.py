"""One boot under qemu: with KVM where that works, emulated where it does not."""

import contextlib
import os
import resource
import signal
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.vm import initrd, packages, project, store

_MEMORY_MIB = 3072
_KVM_TRIAL_S = 20
_KVM = ("-accel", "kvm", "-cpu", "host")
# "max" has five-level page tables, which an emulated processor pays for at every walk. A kernel that is told of fast
# string instructions copies and clears by them, and emulated they go one byte or word at a time (112 is REP_GOOD,
# asm/cpufeatures.h). 18 conformance cases on 6.1, once each on a loaded machine: 165 s of processor time with them, 117
# without.
_EMULATED = ("-accel", "tcg,thread=multi", "-cpu", "max,la57=off,erms=off,fsrm=off")
_EMULATED_CMDLINE = "clearcpuid=112"
_BARE = ("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35")
_CMDLINE = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on"


class Outcome(NamedTuple):
    """`files`: what the guest sent, by name. `processor`: seconds of processor time, whatever else ran meanwhile.
    `why` says what went wrong with the machine itself, or nothing.
    """

    files: dict[str, bytes]
    console: str
    seconds: float
    processor: float
    why: str


def boot(suite: str, cmdline: str, job: dict[str, Any], *, timeout: float) -> Outcome:
    """Run `job` (tests/vm/guest.py) on the kernel of a suite. A machine that hangs is killed. Raises BuildError."""
    root, kernel = packages.root(), packages.kernel(suite)
    with store.used(), tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sbx-vm-") as scratch:
        where = Path(scratch)
        initrd.make(kernel, root / "busybox", where / "initrd")
        project.make_disk(job, where, where / "project.ext4")
        (where / "results").touch()
        disks = [root / "root.ext4", kernel.directory / "modules.ext4", where / "project.ext4"]
        command = _command(kernel.directory / "vmlinuz", where, disks, f"{_CMDLINE} {cmdline}")
        started, used = time.monotonic(), _processor()
        why = _run(command, timeout)
        if not why and not _results(where / "results"):
            # Emulated processors rewrite a starting kernel's instructions under each other's feet, now and then.
            print("vm: the kernel ended before the machine's init: once more", flush=True)
            why = _run(command, timeout)
        seconds, processor = time.monotonic() - started, _processor() - used
        console = (where / "console").read_text(errors="replace") if (where / "console").exists() else ""
        files = _results(where / "results")
    return Outcome(files, console, seconds, processor, why)


def _processor() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _processors(image: Path) -> tuple[str, ...]:
    """KVM where a kernel really runs on it, which is tried once a boot: some have a /dev/kvm that gets nowhere."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return _EMULATED
    known = store.directory() / f"kvm-{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    if not known.exists():
        # Without a root the kernel panics, and that ends the machine.
        command = ["qemu-system-x86_64", *_BARE, *_KVM, "-m", "512", "-kernel", str(image), "-append", "panic=-1"]
        known.write_text("" if _run(command, _KVM_TRIAL_S) else "works")
    return _KVM if known.read_text() else _EMULATED


def _command(image: Path, where: Path, disks: list[Path], cmdline: str) -> list[str]:
    processors = _processors(image)
    cmdline += f" {_EMULATED_CMDLINE}" if processors is _EMULATED else ""
    command = ["qemu-system-x86_64", *_BARE, *processors, "-smp", "2", "-m", str(_MEMORY_MIB)]
    command += ["-device", "virtio-rng-pci"]
    command += ["-kernel", str(image), "-initrd", str(where / "initrd"), "-append", cmdline]
    command += ["-chardev", f"file,id=console,path={where / 'console'}", "-serial", "chardev:console"]
    command += ["-chardev", f"file,id=results,path={where / 'results'}", "-device", "virtio-serial-pci"]
    command += ["-device", "virtserialport,chardev=results,name=sandbox.results"]
    for disk in disks:
        # A snapshot: nothing that the guest writes is kept.
        # A disk of the host's that is full is an error inside; qemu would stop the machine, without a word.
        options = "if=virtio,format=raw,cache=unsafe,snapshot=on,werror=report,rerror=report"
        command += ["-drive", f"{options},file={disk}"]
    return command


def _run(command: list[str], timeout: float) -> str:
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0
    ) as process:
        try:
            said = process.communicate(timeout=timeout)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            return f"the machine hung: killed after {timeout:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    return "" if process.returncode == 0 else f"qemu: exit {process.returncode}: {said.strip()}"


def _results(archive: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    with contextlib.suppress(tarfile.TarError, EOFError), tarfile.open(archive) as tar:
        for member in tar:
            if (stream := tar.extractfile(member)) is not None:
                files[member.name] = stream.read()
    return files
