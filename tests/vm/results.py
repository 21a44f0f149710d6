"""What a machine sent back: JUnit files, read, and what is kept of them."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET

# Of what only machines try (expectations, homes, containers) every case has its place in docs/compatibility.md.
_OURS = "tests.vm."


class Case(NamedTuple):
    """`state`: passed, failed or skipped; `text`: why. `properties`: what the test recorded."""

    name: str
    state: str
    text: str
    properties: dict[str, str]


class Session(NamedTuple):
    """One pytest: its exit code, and how many of its cases passed and were skipped. `cases`: what failed, and those of
    tests/vm. An exit code of 5 says that nothing was selected.
    """

    name: str
    code: int
    seconds: float
    passed: int = 0
    skipped: int = 0
    cases: tuple[Case, ...] = ()

    @property
    def failed(self) -> bool:
        return self.code != 0 or any(case.state == "failed" for case in self.cases)

    def counts(self) -> tuple[int, int, int]:
        """Passed, failed and skipped."""
        return self.passed, sum(case.state == "failed" for case in self.cases), self.skipped

    def summary(self) -> str:
        passed, failed, skipped = self.counts()
        return f"{passed} passed, {failed} failed, {skipped} skipped, exit {self.code}, {self.seconds:.0f} s"


class Found(NamedTuple):
    """Everything of one boot, or of the `machines` that a variant was dealt over. `took`: seconds in all and of
    processor time, as text. `reasons`: of what was skipped. `commit`: of the code that was tried; `when`: UTC, as ISO
    8601 has it.
    """

    kernel: str
    booted: str
    sessions: tuple[Session, ...]
    reasons: tuple[str, ...] = ()
    took: tuple[str, str] = ("?", "?")
    commit: str = "?"
    when: str = ""
    machines: int = 1

    def incomplete(self, sessions: Iterable[str]) -> list[str]:
        """Those of them that did not come to their end, or in which no test passed."""
        whole = {session.name for session in self.sessions if session.passed}
        return [name for name in sessions if name not in whole]

    def expectations(self) -> dict[str, Case]:
        """The cases of tests/vm/expectations.py, by the test's name."""
        return self.cases("expectations")

    def cases(self, of: str) -> dict[str, Case]:
        """Those of the sessions whose name begins with this, by the test's name."""
        cases = [case for session in self.sessions if session.name.startswith(of) for case in session.cases]
        return {case.name.rpartition("::")[2]: case for case in cases}


def read(files: Mapping[str, bytes]) -> Found:
    """Sessions that wrote no exit code were cut off: they are not listed (`Found.incomplete`)."""
    text = {name: data.decode(errors="replace").strip() for name, data in files.items() if not name.endswith(".log")}
    sessions, reasons = [], set[str]()
    for name in sorted(name.removesuffix(".exit") for name in text if name.endswith(".exit")):
        code, seconds = text[f"{name}.exit"].split()
        cases = _cases(files.get(f"{name}.xml", b""))
        sessions.append(_session(name, int(code), float(seconds), cases))
        reasons |= {case.text for case in cases if case.state == "skipped"}
    return Found(text.get("kernel", "?"), text.get("booted", "?"), tuple(sessions), tuple(sorted(reasons)))


def dump(found: Found) -> str:
    """JSON, which `load` takes."""
    sessions = [
        {**session._asdict(), "cases": [case._asdict() for case in session.cases]} for session in found.sessions
    ]
    return json.dumps({**found._asdict(), "sessions": sessions}, indent=1, sort_keys=True) + "\n"


def load(text: str) -> Found:
    data = json.loads(text)
    sessions = tuple(
        Session(**{**session, "cases": tuple(Case(**case) for case in session["cases"])})
        for session in data["sessions"]
    )
    pairs = {name: tuple(data[name]) for name in ("reasons", "took")}
    return Found(**{**data, **pairs, "sessions": sessions})


def together(shares: Sequence[Found]) -> Found:
    """Of a variant that was dealt over machines; its times are their sums."""
    names = dict.fromkeys(session.name for found in shares for session in found.sessions)
    sessions = []
    for name in names:
        parts = [session for found in shares for session in found.sessions if session.name == name]
        sessions.append(
            Session(
                name,
                next(filter(None, (part.code for part in parts)), 0),
                sum(part.seconds for part in parts),
                sum(part.passed for part in parts),
                sum(part.skipped for part in parts),
                tuple(case for part in parts for case in part.cases),
            )
        )
    seconds, processor = (sum(float(found.took[i]) for found in shares) for i in (0, 1))
    first = shares[0]._replace(sessions=tuple(sessions), took=(f"{seconds:.0f}", f"{processor:.0f}"))
    return first._replace(
        commit=", ".join(dict.fromkeys(found.commit for found in shares)),
        when=max(found.when for found in shares),
        reasons=tuple(sorted({reason for found in shares for reason in found.reasons})),
        machines=sum(found.machines for found in shares),
    )


def _session(name: str, code: int, seconds: float, cases: Sequence[Case]) -> Session:
    states = Counter(case.state for case in cases)
    shown = tuple(case for case in cases if case.state == "failed" or case.name.startswith(_OURS))
    return Session(name, code, seconds, states["passed"], states["skipped"], shown)


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
