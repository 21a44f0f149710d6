"""docs/compatibility.md, from the results of the last run of every variant. Pure."""

import re
from collections.abc import Mapping

from tests.vm import containers, features, homes, matrix, skips
from tests.vm.results import Case, Found
from tests.vm.variant import Variant

_STATES = {"passed": "works", "failed": "FAILS"}
# Directories of the tests, which have another name every time.
_PLACE = re.compile(r"/var/tmp/(?:sbx-tests|sandbox-proof)-[0-9a-f]+(?:/[0-9a-f]{8})?|(?<=/)[0-9a-f]{64}(?=\.sfs)")
_HEAD = """# Where it runs

Made from what `make test-vm` found, never by hand: every variant is a machine with a stock Debian kernel under qemu
(`tests/vm/matrix.py` is the table of them). `python -m tests.vm --docs` keeps the last results in `tests/vm/found` and
writes this page from them.
"""
_MODES_HEAD = """
## Modes

What an ordinary command line does in each machine: scratch, images, archives and directories, read-only and writable
(`FEATURES` in `tests/vm/expectations.py`; where a variant is about mounts or about processes, only those that are).
"works" is all that was tried. A number is how many of them work; the lines for the others are below the table. "below":
the variant runs other tests, which are counted under Suites, and for homes and containers have a table. The last column
says how an ordinary user's images come in mode userns, where no kernel lets him mount them.
"""
_VERSION = re.compile(r"\d+\.\d+")
_SERVED = {"fuseblk": "by FUSE", "tmpfs": "unpacked"}
_HOMES_HEAD = """
## Homes

Home, cache and sources on a filesystem of its own: an image, an archive and a directory in one launch, read-only and
writable, programs started from all, then once more with what was kept. A job has a directory there as its workspace and
as two trees, in all modes; with `--workspace rw` root's writes to it.
"""
_CONTAINERS_HEAD = """
## Containers

In containers that podman makes of the machine's own root: both engines, mode auto. What does not work says so in one
line, which names what the container needs; the lines are below the table.
"""
_FEATURES_HEAD = """
## Kernel features

Tried, not looked up. "shown" is what these kernels prove: the newest that lacks it, and the oldest that has it; "said"
is the version that is said to have brought it (man pages, the kernel's history). A kernel that disagrees fails the run.
"""
_TIMES_HEAD = """
## Times

Seconds of each machine: until its tests began, in all, and of processor time. Emulated on two processors, of which
other work on the host took its part; variants that are not part of the default matrix are asked for by name, and one
that is dealt over several machines has their sums. Last the commit that was tried.
"""
_SUITES_HEAD = """
## Suites

Passed, failed and skipped; a session named here ran in that machine, some at once. The seconds are those of an
emulated machine on a host that did other things as well. The reasons of what was skipped follow, with the variants;
a reason that `tests/vm/skips.py` does not hold for that variant fails the run.
"""


def page(found: Mapping[str, Found]) -> str:
    """Markdown. Variants without a result are named as such."""
    variants = list(matrix.VARIANTS)
    parts = [_modes(variants, found), _homes(found), _containers(found)]
    return _HEAD + "".join(parts) + _kernels(variants, found) + _times(variants, found) + _suites(variants, found)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n" + _row(*head) + _row(*["---"] * len(head)) + "".join(_row(*row) for row in rows)


def _modes(variants: list[Variant], found: Mapping[str, Found]) -> str:
    rows, lines = [], []
    for variant in variants:
        if (result := found.get(variant.name)) is None:
            rows.append([variant.name, variant.why, "not run", *["-"] * len(matrix.MODES), "-"])
            continue
        if not result.expectations():
            part = "" if result.machines == variant.shares else f" ({result.machines} of {variant.shares} machines)"
            rows.append([variant.name, variant.why + part, result.kernel, *["below"] * len(matrix.MODES), "-"])
            continue
        states = []
        for mode in matrix.MODES:
            state, said = _mode(result, mode)
            states.append(state)
            lines += [f"- {variant.name}, {mode}: {line}\n" for line in said]
        install = result.expectations().get("test_install")
        if install and (line := install.properties.get("line")):
            lines.append(f"- {variant.name}, sandbox setuid install: `{_PLACE.sub('DIR', line)}`\n")
        image = result.expectations().get("test_what_serves_an_image[userns]")
        served = image.properties.get("served by", "-") if image else "-"
        rows.append([variant.name, variant.why, result.kernel, *states, _SERVED.get(served, served)])
    table = _table(["variant", "what", "kernel", *matrix.MODES, "a user's image"], rows)
    return _MODES_HEAD + table + "\nWhat is said where it does not work:\n\n" + "".join(lines)


def _mode(result: Found, mode: str) -> tuple[str, list[str]]:
    """A cell of the table, and the lines said. A case that passed and recorded a line was refused, as it must be."""
    cases = {name: case for name, case in result.expectations().items() if name.startswith(f"test_mode[{mode}-")}
    if not cases:
        return "not run", []
    feature = {name: name.removeprefix(f"test_mode[{mode}-").removesuffix("]") for name in cases}
    wrong = sorted(feature[name] for name, case in cases.items() if case.state != "passed")
    if wrong:
        return f"FAILS: {', '.join(wrong)}", []
    refused = [line for case in cases.values() if (line := case.properties.get("line"))]
    said = sorted({f"`{_PLACE.sub('DIR', line)}`" for line in refused})
    if not refused:
        return "works", []
    if len(refused) == len(cases):
        return "one line", said[:1]
    return f"{len(cases) - len(refused)} of {len(cases)}", said


def _homes(found: Mapping[str, Found]) -> str:
    if not (cases := found["homes"].cases("homes") if "homes" in found else {}):
        return ""
    rows: list[list[str]] = []
    said: dict[str, list[str]] = {}
    for name in homes.FILESYSTEMS:
        got = [cases.get(f"test_home[{name}-{mode}]") for mode in matrix.MODES]
        jobs = [cases.get(f"test_job[{name}-{mode}]") for mode in matrix.MODES]
        worst = next((case for case in jobs if case is None or case.state != "passed"), jobs[0])
        writes = cases.get(f"test_job_that_writes[{name}]")
        refused = writes.properties.get("line") if writes and writes.state == "passed" else None
        cells = [_state(case) for case in (*got, worst)] + ["one line" if refused else _state(writes)]
        rows.append([name, *cells])
        if refused:
            said.setdefault(re.sub(r"(?<= show )\S+", "DIR", refused), []).append(name)
    lines = "".join(f"- {', '.join(names)}: `{line}`\n" for line, names in said.items())
    table = _table(["filesystem", *matrix.MODES, "a job", "--workspace rw"], rows)
    return _HOMES_HEAD + table + (f"\n{lines}" if lines else "")


def _why(reason: str, variant: str) -> str:
    why = skips.explanation(reason, matrix.by_name(variant))
    return f"{reason}: {why}" if why else reason


def _state(case: Case | None) -> str:
    return "not run" if case is None else _STATES.get(case.state, case.state)


def _containers(found: Mapping[str, Found]) -> str:
    if not (cases := found["containers"].cases("containers") if "containers" in found else {}):
        return ""
    rows, lines = [], []
    for name, container in containers.CONTAINERS.items():
        case = cases.get(f"test_container[{name}]")
        cells = []
        for feature in containers.FEATURES:
            said = [
                case.properties.get(f"{engine} {feature}", "not run") if case else "not run"
                for engine in containers.ENGINES
            ]
            refused = {*said}.isdisjoint(("works", "not run"))
            cells.append("one line" if refused else said[0] if len({*said}) == 1 else "differs")
            lines += [f"- {name}, {feature}: `{_PLACE.sub('DIR', said[0])}`\n"] if refused else []
        state = "" if case is None or case.state == "passed" else " FAILS"
        rows.append([name + state, container.why, *cells])
    return _CONTAINERS_HEAD + _table(["container", "what", *containers.FEATURES], rows) + "\n" + "".join(lines)


def _kernels(variants: list[Variant], found: Mapping[str, Found]) -> str:
    shown = [variant for variant in variants if variant.name in matrix.KERNELS and variant.name in found]
    shown.sort(key=lambda variant: [int(part) if part.isdigit() else 999 for part in variant.kernel.split(".")])
    rows = []
    for name, (since, _) in features.PROBES.items():
        cells = []
        for variant in shown:
            case = found[variant.name].expectations().get(f"test_kernel[{name}]")
            cells.append(case.properties.get("kernel feature", "?") if case else "not run")
        versions = [_VERSION.match(found[variant.name].kernel)[0] for variant in shown]  # type: ignore[index]
        rows.append([name, _bracket(versions, cells), ".".join(map(str, since)), *cells])
    kernels = [found[variant.name].kernel for variant in shown]
    return _FEATURES_HEAD + _table(["feature", "shown", "said", *kernels], rows)


def _bracket(versions: list[str], cells: list[str]) -> str:
    """After the newest version that lacks it, by the oldest that has it."""
    tried = [(version, cell == "works") for version, cell in zip(versions, cells, strict=True) if cell != "not run"]
    without, having = ([version for version, works in tried if works is wanted] for wanted in (False, True))
    return ", ".join([*(f"after {version}" for version in without[-1:]), *(f"by {version}" for version in having[:1])])


def _asked_for(variant: Variant) -> str:
    machines = "" if variant.shares == 1 else f", {variant.shares} machines"
    return "yes" if variant.default else f"by name{machines}"


def _times(variants: list[Variant], found: Mapping[str, Found]) -> str:
    rows = [
        [variant.name, _asked_for(variant), result.booted, *result.took, result.commit]
        for variant in variants
        if (result := found.get(variant.name))
    ]
    default = [found[variant.name].took[0] for variant in variants if variant.default and variant.name in found]
    known = [int(seconds) for seconds in default if seconds.isdigit()]
    total = f"\nThe default matrix, {len(known)} machines: {sum(known) / 60:.0f} minutes.\n" if known else ""
    return (
        _TIMES_HEAD + _table(["variant", "default", "until the tests", "in all", "processor", "commit"], rows) + total
    )


def _suites(variants: list[Variant], found: Mapping[str, Found]) -> str:
    rows: list[list[str]] = []
    reasons: dict[str, list[str]] = {}
    for variant in variants:
        for session in found[variant.name].sessions if variant.name in found else ():
            counts = [str(count) for count in session.counts()]
            rows.append([variant.name, session.name, *counts, f"{session.seconds:.0f}"])
        for reason in found[variant.name].reasons if variant.name in found else ():
            reasons.setdefault(reason, []).append(variant.name)
    skipped = "".join(f"- {_why(reason, names[0])} ({', '.join(names)})\n" for reason, names in sorted(reasons.items()))
    return (
        _SUITES_HEAD + _table(["variant", "session", "passed", "failed", "skipped", "seconds"], rows) + "\n" + skipped
    )
