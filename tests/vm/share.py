"""A plugin of pytest: of all tests that were selected only a share, the same in every run."""

import zlib

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="NUMBER/OF", required=True, help="which, from 1, and of how many")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number, of = map(int, config.getoption("--share").split("/"))
    # By the name of the test, so that a new one moves no other.
    mine = [item for item in items if zlib.crc32(item.nodeid.encode()) % of == number - 1]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
    items[:] = mine
