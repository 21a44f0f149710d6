"""Classic BPF as a plan carries it: each struct sock_filter (linux/filter.h) is a number of 64 bits."""

import struct

INSTRUCTION = struct.Struct("<HBBI")
# Return a constant; load a word; jump: always, where it is equal, greater, at least.
RET_K, LOAD, JA, JEQ, JGT, JGE = 0x06, 0x20, 0x05, 0x15, 0x25, 0x35
# What a filter returns (linux/seccomp.h), and the offsets in struct seccomp_data (seccomp(2)).
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE = 0, 4
# code, jt, jf, k
Instruction = tuple[int, int, int, int]


def unpacked(word: int) -> Instruction:
    """The fields of an instruction."""
    code, jt, jf, k = INSTRUCTION.unpack(word.to_bytes(INSTRUCTION.size, "little"))
    return code, jt, jf, k


def packed(code: int, jt: int, jf: int, k: int) -> int:
    """An instruction of these fields."""
    return int.from_bytes(INSTRUCTION.pack(code, jt, jf, k), "little")
