"""What a machine sent back: JUnit files, read."""

from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET


class Case(NamedTuple):
    """`state`: passed, failed or skipped; `text`: why. `properties`: what the test recorded."""

    name: str
    state: str
    text: str
    properties: dict[str, str]


class Session(NamedTuple):
    """One pytest: its exit code and its cases. An exit code of 5 says that nothing was selected."""

    name: str
    code: int
    seconds: float
    cases: tuple[Case, ...]

    @property
    def failed(self) -> bool:
        return self.code != 0 or any(case.state == "failed" for case in self.cases)

    def count(self, state: str) -> int:
        return sum(case.state == state for case in self.cases)

    def summary(self) -> str:
        states = ", ".join(f"{self.count(state)} {state}" for state in ("passed", "failed", "skipped"))
        return f"{states}, exit {self.code}, {self.seconds:.0f} s"


class Found(NamedTuple):
    """Everything of one boot, or of the `machines` that a variant was dealt over. `took`: seconds in all and of
    processor time, as text.
    """

    kernel: str
    booted: str
    sessions: tuple[Session, ...]
    took: tuple[str, str] = ("?", "?")
    machines: int = 1

    def expectations(self) -> dict[str, Case]:
        """The cases of tests/vm/expectations.py, by the test's name."""
        return self.cases("expectations")

    def skipped(self) -> set[str]:
        """The reasons."""
        return {case.text for session in self.sessions for case in session.cases if case.state == "skipped"}

    def cases(self, of: str) -> dict[str, Case]:
        """Those of the sessions whose name begins with this, by the test's name."""
        cases = [case for session in self.sessions if session.name.startswith(of) for case in session.cases]
        return {case.name.rpartition("::")[2]: case for case in cases}


def read(files: dict[str, bytes]) -> Found:
    """Sessions that wrote no exit code were cut off: they are not listed, and the machine's outcome says why."""
    text = {name: data.decode(errors="replace").strip() for name, data in files.items() if not name.endswith(".log")}
    sessions = []
    for name in sorted(name.removesuffix(".exit") for name in text if name.endswith(".exit")):
        code, seconds = text[f"{name}.exit"].split()
        sessions.append(Session(name, int(code), float(seconds), _cases(files.get(f"{name}.xml", b""))))
    seconds, processor = text.get("took", "? ?").split()
    return Found(text.get("kernel", "?"), text.get("booted", "?"), tuple(sessions), (seconds, processor))


def together(shares: Sequence[Found]) -> Found:
    """Of a variant that was dealt over machines; its times are their sums."""
    names = dict.fromkeys(session.name for found in shares for session in found.sessions)
    sessions = []
    for name in names:
        parts = [session for found in shares for session in found.sessions if session.name == name]
        codes = [part.code for part in parts]
        cases = tuple(case for part in parts for case in part.cases)
        sessions.append(Session(name, next(filter(None, codes), 0), sum(part.seconds for part in parts), cases))
    seconds, processor = (sum(float(found.took[i]) for found in shares) for i in (0, 1))
    took = (f"{seconds:.0f}", f"{processor:.0f}")
    return Found(shares[0].kernel, shares[0].booted, tuple(sessions), took, len(shares))


def _cases(document: bytes) -> tuple[Case, ...]:
    if not document:
        return ()
    return tuple(_case(element) for element in ET.fromstring(document).iter("testcase"))


def _case(element: ET.Element) -> Case:
    name = f"{element.get('classname', '')}::{element.get('name', '')}"
    properties = {entry.get("name", ""): entry.get("value", "") for entry in element.iter("property")}
    for tag, state in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if (found := element.find(tag)) is not None:
            return Case(name, state, found.get("message", ""), properties)
    return Case(name, "passed", "", properties)
