"""What the native parsers make of bytes, from examples/plan-echo.rs, and bytes that are worth asking about."""

import functools
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

CRATE = Path(__file__).resolve().parents[2] / "setuid-helper"
ROUNDS = 50 if "SANDBOX_SOAK" in os.environ else 1
_NUMBERS = [0, 1, 2, 3, 5, 6, 31, 32, 39, 40, 64, 65, 4095, 4096, 4097, 65536, 65537, 2**31, 2**32 - 1]


class Answer(NamedTuple):
    """Of one plan: the bytes it was encoded to again, and the plan in words; of a refused one nothing, and why."""

    accepted: bool
    encoded: bytes
    words: str


def ask(texts=(), arguments=()):
    """An Answer for each of the texts, or for what the arguments ask for."""
    request = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    done = subprocess.run([_program(), *arguments], input=request, stdout=subprocess.PIPE, check=True)
    return list(_answers(done.stdout))


@functools.cache
def _program():
    if shutil.which("cargo") is None or not (CRATE / "Cargo.toml").exists():
        pytest.skip("the native parsers are built by cargo, and there is no cargo or no crate")
    manifest = ["--manifest-path", CRATE / "Cargo.toml"]
    subprocess.run(["cargo", "build", "--quiet", "--locked", "--example", "plan-echo", *manifest], check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", CRATE / "target")) / "debug/examples/plan-echo"


def _answers(data):
    at = 0

    def text():
        nonlocal at
        (length,) = struct.unpack_from("<I", data, at)
        at += 4 + length
        return data[at - length : at]

    while at < len(data):
        accepted = data[at] == 1
        at += 1
        yield Answer(accepted, text(), text().decode())


def changed(rng, data):
    """The bytes with a change somewhere: a bit, a byte, a number, a piece removed, repeated or put in."""
    if not data:
        return data
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.randint(1, 12))
    match rng.randrange(7):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + rng.choice([b"\0", b"\1", b"\2", b"/", b".", b"=", b"\xff"]) + data[at + 1 :]
        case 2:
            return data[:at] + struct.pack("<I", rng.choice(_NUMBERS)) + data[at + 4 :]
        case 3:
            return data[:at] + data[end:]
        case 4:
            return data[:end] + data[at:]
        case 5:
            return data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at:]
        case _:
            return data[:at]
