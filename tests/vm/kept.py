"""The last result of every machine: this host's, in the store, and the project's, which docs/compatibility.md shows.

Who runs one variant renews its lines only; the rest stay those of whoever ran them, each with its commit.
"""

from datetime import UTC, datetime
from pathlib import Path

from tests.support.install import REPOSITORY
from tests.vm import matrix, packages, results, store
from tests.vm.results import Found
from tests.vm.variant import Variant

_PROJECT = Path(__file__).with_name("found")


def commit() -> str:
    """What is tried, abbreviated; "-dirty" when it is more than that commit."""
    return packages.run("git", "-C", REPOSITORY, "describe", "--always", "--dirty", "--exclude=*").strip()


def keep(machine: str, result: Found) -> None:
    """As this host's last."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    _write(_of_host(machine), result._replace(when=when))


def machines() -> list[Variant]:
    """Every one that there may be a result of."""
    return [machine for variant in matrix.VARIANTS for machine in variant.dealt()]


def of_project(machine: Variant) -> Found | None:
    """What docs/compatibility.md shows of it."""
    return _read(_of_project(machine.name))


def take() -> None:
    """What is newer here becomes the project's. Of machines that there are no more nothing stays."""
    places = {machine.name: _of_project(machine.name) for machine in machines()}
    for stale in {*_PROJECT.rglob("*.json")} - {*places.values()}:
        stale.unlink()
    for name, ours in places.items():
        here, there = _read(_of_host(name)), _read(ours)
        if here and (there is None or there.when < here.when):
            _write(ours, here)


def found() -> dict[str, Found]:
    """The project's, by the name of the variant."""
    by_variant = {}
    for variant in matrix.VARIANTS:
        parts = [result for machine in variant.dealt() if (result := of_project(machine))]
        if parts:
            by_variant[variant.name] = results.together(parts) if variant.shares > 1 else parts[0]
    return by_variant


def _of_host(machine: str) -> Path:
    return store.directory() / store.RESULTS / f"{machine}.json"


def _of_project(machine: str) -> Path:
    return _PROJECT / f"{machine}.json"


def _read(path: Path) -> Found | None:
    return results.load(path.read_text()) if path.exists() else None


def _write(path: Path, result: Found) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(results.dump(result))
    fresh.replace(path)
