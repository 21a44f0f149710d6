"""Classic BPF as a plan carries it: each struct sock_filter (linux/filter.h) is a number of 64 bits."""

import struct

INSTRUCTION = struct.Struct("<HBBI")
# Return a constant, jump.
RET_K, JA = 0x06, 0x05
# code, jt, jf, k
Instruction = tuple[int, int, int, int]


def unpacked(word: int) -> Instruction:
    """The fields of an instruction."""
    code, jt, jf, k = INSTRUCTION.unpack(word.to_bytes(INSTRUCTION.size, "little"))
    return code, jt, jf, k


def packed(code: int, jt: int, jf: int, k: int) -> int:
    """An instruction of these fields."""
    return int.from_bytes(INSTRUCTION.pack(code, jt, jf, k), "little")
