"""A filter of libseccomp's in fewer instructions: numbers next to each other that are answered alike are one range.

libseccomp has a comparison for every system call. What a launch pays for a filter is its length: the kernel checks,
translates and compiles every instruction (bpf_prog_create_from_user, kernel/seccomp.c).
"""

from collections.abc import Iterator

from sandbox import bpf
from sandbox.bpf import ARCHITECTURE, JA, JEQ, JGE, JGT, LOAD, NUMBER, RET_K, Instruction

_MOST, _FURTHEST = 0xFFFFFFFF, 0xFF
_COMPARED = {JEQ: lambda a, k: a == k, JGT: lambda a, k: a > k, JGE: lambda a, k: a >= k}

# Of the new program: an instruction of the old one by its index, or one that is not there yet.
_Label = tuple[str, int]


class _NotKnownError(Exception):
    """The program does something with a number that libseccomp does not do."""


def compacted(words: tuple[int, ...]) -> tuple[int, ...]:
    """The same answer to every call, in fewer instructions; where that cannot be had, the program itself.

    `words`: instructions as a plan carries them, of a filter for one architecture.
    """
    try:
        made = _Ranges([*map(bpf.unpacked, words)]).assembled()
    except _NotKnownError:
        return words
    short = tuple(bpf.packed(*instruction) for instruction in made)
    return min(short, words, key=len)


class _Ranges:
    def __init__(self, program: list[Instruction]) -> None:
        self.program = program
        # Load the architecture, jump where it is another, go on with the number: how libseccomp begins.
        if [step[:2] for step in program[:3]] != [(LOAD, 0), (JEQ, 0), (LOAD, 0)] or program[0][3] != ARCHITECTURE:
            raise _NotKnownError
        self.returns: dict[int, int] = {}
        for index, (code, _, _, k) in enumerate(program):
            if code == RET_K:
                self.returns.setdefault(k, index)
        self.made: list[tuple[Instruction, tuple[_Label, ...]]] = []

    def assembled(self) -> list[Instruction]:
        ranges = list(self._ranges())
        foreign = self._target(2 + self.program[1][2])
        self._emit(self.program[0])
        self._emit(self.program[1], ("new", 2), ("old", foreign))
        self._emit((LOAD, 0, 0, NUMBER))
        if len(ranges) == 1:
            raise _NotKnownError
        self._search(ranges)
        kept = sorted(self._reachable({foreign, *(target for _, target in ranges)}))
        places = {("old", index): len(self.made) + place for place, index in enumerate(kept)}
        for index in kept:
            self._keep(index)
        return [self._resolved(place, places) for place in range(len(self.made))]

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """(the first number, what it comes to) of each range, ascending. Between two numbers that the program
        compares with, it cannot tell.
        """
        starts = {0}
        for code, _, _, k in self.program:
            if code in _COMPARED:
                starts |= {k, min(k + 1, _MOST)}
        before = -1
        for start in sorted(starts):
            if (target := self._target(2, start)) != before:
                yield start, target
                before = target

    def _target(self, at: int, number: int = 0) -> int:
        """Where the program gets to that it begins with: a return, or the first look at an argument."""
        known = False
        while True:
            code, jt, jf, k = self.program[at]
            if code == RET_K:
                return self.returns[k]
            if code == LOAD and k == NUMBER:
                known, at = True, at + 1
            elif code == LOAD and k > ARCHITECTURE and known:
                return at
            elif code == JA:
                at += 1 + k
            elif known and code in _COMPARED:
                at += 1 + (jt if _COMPARED[code](number, k) else jf)
            else:
                raise _NotKnownError

    def _search(self, ranges: list[tuple[int, int]]) -> _Label:
        """Emit a search for the range of a number; says where it begins."""
        if len(ranges) == 1:
            return "old", ranges[0][1]
        middle = len(ranges) // 2
        here = len(self.made)
        self._emit((JGE, 0, 0, ranges[middle][0]))
        low, high = self._search(ranges[:middle]), self._search(ranges[middle:])
        self.made[here] = (self.made[here][0], (high, low))
        return "new", here

    def _reachable(self, targets: set[int]) -> set[int]:
        found: set[int] = set()
        while targets:
            index = targets.pop()
            found.add(index)
            targets |= set(self._following(index)) - found
        return found

    def _following(self, index: int) -> tuple[int, ...]:
        code, jt, jf, k = self.program[index]
        if code == RET_K:
            return ()
        if code == JA:
            return (index + 1 + k,)
        return (index + 1 + jt, index + 1 + jf) if _is_jump(self.program[index]) else (index + 1,)

    def _keep(self, index: int) -> None:
        after = self._following(index)
        # What only goes on has behind it what it had before.
        labels: list[_Label] = [("old", target) for target in after] if _is_jump(self.program[index]) else []
        self._emit(self.program[index], *labels)

    def _emit(self, instruction: Instruction, *targets: _Label) -> None:
        self.made.append((instruction, targets))

    def _resolved(self, place: int, places: dict[_Label, int]) -> Instruction:
        (code, jt, jf, k), targets = self.made[place]
        offsets = [places.get(label, label[1]) - place - 1 for label in targets]
        if max(offsets, default=0) > _FURTHEST:
            raise _NotKnownError
        if code == JA:
            return code, 0, 0, offsets[0]
        return (code, offsets[0], offsets[1], k) if offsets else (code, jt, jf, k)


def _is_jump(instruction: Instruction) -> bool:
    return instruction[0] & 7 == JA & 7
