"""The plan vectors that any engine can test its decoder with; the native one does so in cargo test."""

from pathlib import Path

import pytest

from sandbox.codec import PlanError, decode, encode

VECTORS = Path(__file__).resolve().parents[1] / "vectors"


def of(kind):
    found = sorted(VECTORS.glob(f"{kind}-*.plan"))
    assert found
    return found


@pytest.mark.parametrize("path", of("good"), ids=lambda path: path.stem)
def test_good_vectors_decode_and_encode_to_the_same_bytes(path):
    data = path.read_bytes()
    assert encode(decode(data), data[8]) == data


@pytest.mark.parametrize("path", of("bad"), ids=lambda path: path.stem)
def test_bad_vectors_are_refused(path):
    with pytest.raises(PlanError):
        decode(path.read_bytes())


def test_every_vector_is_described():
    assert {path.stem for path in VECTORS.glob("*.plan")} == {path.stem for path in VECTORS.glob("*.txt")}
