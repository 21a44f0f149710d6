"""Write the plan vectors: `good-*.plan` must decode, `bad-*.plan` must be refused, `*.txt` says what each holds.

    PYTHONPATH=. python3 tests/vectors/make.py

The output is committed; running this again changes nothing unless the format or this file did.
"""

from pathlib import Path

from sandbox import codec
from sandbox.codec import PlanError, decode
from tests.vectors.bad import bad_head, bad_isolation, bad_places, bad_steps, encode
from tests.vectors.good import AGAIN, good


def main() -> None:
    here = Path(__file__).parent
    for old in (*here.glob("*.plan"), *here.glob("*.txt")):
        old.unlink()
    older = [(f"{name}-2", f"{what}, in version 2", encode(value, 2)) for name, what, value in good() if name in AGAIN]
    for name, what, data in (*((name, what, encode(value)) for name, what, value in good()), *older):
        assert codec.encode(decode(data), data[8]) == data
        write(here / f"good-{name}", what, data)
    accepted = []
    for name, what, data in (*bad_head(), *bad_steps(), *bad_places(), *bad_isolation()):
        write(here / f"bad-{name}", what, data)
        try:
            decode(data)
        except PlanError:
            continue
        accepted.append(name)
    if accepted:
        raise SystemExit(f"the Python codec accepts bad vectors: {', '.join(accepted)}")


def write(stem: Path, what: str, data: bytes) -> None:
    stem.with_suffix(".plan").write_bytes(data)
    stem.with_suffix(".txt").write_text(what + "\n")


if __name__ == "__main__":
    main()
