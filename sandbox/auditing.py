"""--audit: which system calls a filter refused. The kernel asks (seccomp_unotify(2)), and is told what the filter says.

No privilege is needed, and no memory of the job is read: a call is known by its number and arguments.
"""

import errno
import fcntl
import operator
import os
import struct
from collections.abc import Callable

from sandbox import bpf
from sandbox.errors import HostError, UsageError
from sandbox.record import Record

# linux/seccomp.h
ACTION, _RET_DATA = 0xFFFF0000, 0xFFFF
_NUMBERS = {"sendmsg": (46, 211), "execve": (59, 221)}
_RET_USER_NOTIF = 0x7FC00000
_NOTIF_RECV, _NOTIF_SEND = 0xC0502100, 0xC0182101
# struct seccomp_notif: id, pid, flags, then struct seccomp_data: number, architecture, instruction pointer, arguments.
_NOTIFICATION = struct.Struct("=QII")
_DATA = struct.Struct("=iIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
# How many different calls are told apart: the job chooses the numbers.
_MOST = 256

# linux/filter.h: class in bits 0-2; for arithmetic and jumps the operation in bits 4-7, and bit 3 for X instead of K.
_RET_A, _JMP, _ALU, _X = 0x16, 0x05, 0x04, 0x08
_ARITHMETIC: dict[int, Callable[[int, int], int]] = {
    0x00: operator.add,
    0x10: operator.sub,
    0x20: operator.mul,
    0x30: lambda a, b: a // b if b else 0,
    0x40: operator.or_,
    0x50: operator.and_,
    0x60: lambda a, b: a << (b & 31),
    0x70: lambda a, b: a >> (b & 31),
    0x80: lambda a, _: -a,
    0xA0: operator.xor,
}
_CONDITIONS: dict[int, Callable[[int, int], bool]] = {
    0x10: operator.eq,
    0x20: operator.gt,
    0x30: operator.ge,
    0x40: lambda a, b: bool(a & b),
}
_WORD = 0xFFFFFFFF


class Refusal(Record):
    """A system call that was refused, how, and how often."""

    call: str
    error: str
    count: int


def asking(words: tuple[int, ...]) -> tuple[int, ...]:
    """The same filter, which asks where it would give an errno. Raises UsageError where that cannot be."""
    made = []
    for word in words:
        code, jt, jf, k = bpf.unpacked(word)
        if code == _RET_A:
            raise UsageError("--audit: this filter computes its answers", hint="leave one of --audit and --seccomp out")
        if code == bpf.RET_K and k & ACTION == bpf.RET_ERRNO:
            k = _RET_USER_NOTIF
        made.append(bpf.packed(code, jt, jf, k))
    # By which the asked end is handed over.
    if judge(words, call("sendmsg")) & ACTION != bpf.RET_ALLOW:
        raise UsageError("--audit: this filter refuses sendmsg, which it is set up with", hint="allow sendmsg in it")
    return tuple(made)


def call(name: str) -> bytes:
    """The struct seccomp_data of a call of one of these names, with no arguments: unistd_64.h, asm-generic/unistd.h."""
    is_x86 = os.uname().machine == "x86_64"
    number = _NUMBERS[name][0 if is_x86 else 1]
    return _DATA.pack(number, 0xC000003E if is_x86 else 0xC00000B7, 0, *[0] * 6)


def judge(words: tuple[int, ...], data: bytes) -> int:
    """What a filter of classic BPF returns for a struct seccomp_data. The kernel has checked it (seccomp(2))."""
    a = x = 0
    memory = [0] * 16
    at = 0
    while True:
        code, jt, jf, k = bpf.unpacked(words[at])
        at += 1
        if code in (bpf.RET_K, _RET_A):
            return int(k if code == bpf.RET_K else a)
        if code & 7 == _JMP:
            if code & 0xF0 == 0:
                at += k
            else:
                at += jt if _CONDITIONS[code & 0xF0](a, x if code & _X else k) else jf
        elif code & 7 == _ALU:
            a = _ARITHMETIC[code & 0xF0](a, x if code & _X else k) & _WORD
        else:
            a, x = _move(code, k, a, x, memory, data)


def _move(code: int, k: int, a: int, x: int, memory: list[int], data: bytes) -> tuple[int, int]:
    """Loads and stores: the new A and X."""
    match code:
        case 0x20:  # LD ABS
            return int.from_bytes(data[k : k + 4], "little"), x
        case 0x00 | 0x80:  # LD IMM, LD LEN
            return (k if code == 0 else len(data)), x
        case 0x01 | 0x81:  # LDX IMM, LDX LEN
            return a, (k if code == 1 else len(data))
        case 0x60:
            return memory[k], x
        case 0x61:
            return a, memory[k]
        case 0x02 | 0x03:  # ST, STX
            memory[k] = a if code == 2 else x
        case 0x07:  # TAX
            return a, a
        case 0x87:  # TXA
            return x, x
    return a, x


class Auditor:
    """Answers what is asked, and remembers it."""

    def __init__(self, words: tuple[int, ...]) -> None:
        self.words = words
        self.counts: dict[tuple[int, int, int], int] = {}

    def answer(self, listener: int) -> None:
        """One question. A caller that has died meanwhile asks no more."""
        buffer = bytearray(_NOTIFICATION.size + _DATA.size)
        try:
            fcntl.ioctl(listener, _NOTIF_RECV, buffer)
            cookie = _NOTIFICATION.unpack_from(buffer)[0]
            data = bytes(buffer[_NOTIFICATION.size :])
            number = judge(self.words, data) & _RET_DATA
            if number:  # without an error nothing is refused: it has no effect
                self._note(data, number)
            fcntl.ioctl(listener, _NOTIF_SEND, _RESPONSE.pack(cookie, 0, -number, 0))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINTR):
                raise

    def _note(self, data: bytes, number: int) -> None:
        call, machine = _DATA.unpack(data)[:2]
        key = (machine, call, number)
        if key not in self.counts and len(self.counts) >= _MOST:
            key = (0, 0, 0)
        self.counts[key] = self.counts.get(key, 0) + 1

    def refusals(self) -> list[Refusal]:
        """In the order of their first time."""
        return [
            Refusal(_name(machine, call), errno.errorcode.get(number, str(number)), count)
            for (machine, call, number), count in self.counts.items()
        ]


def _name(machine: int, call: int) -> str:
    if machine == 0:
        return "others"
    from sandbox import seccomp

    try:
        library = seccomp.bindings()
    except (ImportError, RuntimeError, OSError) as error:
        raise HostError(f"cannot use libseccomp: {error}", hint="install libseccomp2") from None
    native = library.system_arch()
    foreign = {0x40000003: library.Arch.X86, 0x40000028: library.Arch.ARM}
    is_x32 = machine == 0xC000003E and call & 0x40000000
    architecture = library.Arch.X32 if is_x32 else foreign.get(machine, native)
    try:
        name = os.fsdecode(library.resolve_syscall(architecture, call))
    except (OSError, ValueError, OverflowError):  # the last one of libseccomp's bindings, for x32
        name = f"number {call}"
    return name if architecture == native else f"{name} (foreign ABI)"


def line(refusals: list[Refusal]) -> str:
    """For a person."""
    if not refusals:
        return "no system call was refused"
    times = [f"{item.call} ({item.error}{f', {item.count} times' if item.count > 1 else ''})" for item in refusals]
    return f"refused: {', '.join(times)}"
