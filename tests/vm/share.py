"""A plugin of pytest: of all tests that were selected only a share, the same in every run."""

import hashlib

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="NUMBER/OF", required=True, help="which machine, from 1, and of how many")
    parser.addoption(
        "--test-lane", metavar="NUMBER/OF", default="1/1", help="which of the sessions that run there at once"
    )
    parser.addoption(
        "--file-lane", metavar="NUMBER/OF", default="1/1", help="the same, where a file is run by one of them"
    )


def _is_dealt(name: str, to: str) -> bool:
    number, of = map(int, to.split("/"))
    # By the name, so that a new one moves no other.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % of == number - 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share, *lane = (config.getoption(name) for name in ("--share", "--test-lane", "--file-lane"))
    mine = [
        item
        for item in items
        if _is_dealt(item.nodeid, share)
        and _is_dealt(f"lane {item.nodeid}", lane[0])
        and _is_dealt(item.location[0], lane[1])
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
    items[:] = mine
