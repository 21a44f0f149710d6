"""pytest plugin: tests in sandboxes (docs/pytest.md). Loaded by every pytest of an environment, so it loads nothing.

`@pytest.mark.sandbox(level="job")` runs a test in a sandbox, in a pytest of its own whose reports come out here;
`--sandbox` the whole session. What is inside knows that it is, by a variable, and runs everything as it stands.
"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sandbox import Sandbox

INSIDE = "SANDBOX_PYTEST_INSIDE"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sandbox", "tests in sandboxes")
    group.addoption("--sandbox", action="store_true", help="run the whole session in a sandbox, at level job")
    words = "an option of `sandbox run` for --sandbox and all marked tests, as in net=host or cache"
    group.addoption("--sandbox-option", metavar="NAME[=VALUE]", action="append", default=[], help=words)
    parser.addini("sandbox_options", "the same, a line each; the command line comes after it", type="linelist")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sandbox(level='job', **options): run this test in a sandbox (docs/pytest.md)")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not config.getoption("--sandbox") or INSIDE in os.environ:
        return None
    from sandbox.api import pytest_outer

    return pytest_outer.run_session(config)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    marker = None if INSIDE in os.environ else item.get_closest_marker("sandbox")
    if marker is None:
        return None
    from sandbox.api import pytest_outer

    pytest_outer.run_item(item, nextitem, marker)
    return True


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> "Iterator[Sandbox]":
    """A Sandbox at level job, with the options of the session; indirect parametrization gives others, as a dict."""
    from sandbox.api import pytest_outer

    more: dict[str, Any] = getattr(request, "param", {})
    box = pytest_outer.make(request.config, more)
    yield box
    box.close()
