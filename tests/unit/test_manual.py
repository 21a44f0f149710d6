"""The man pages: nothing of the command line or of the files is missing, and readers of man pages take them."""

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from manual import pages, reference, roff, share
from sandbox import policy
from sandbox.cli.main import COMMANDS
from sandbox.cli.whole import whole_parser
from sandbox.plan import OPCODES

PAGES = pages.pages()
ROOT = Path(__file__).resolve().parents[2]


def text(name):
    """A page as a reader sees its words."""
    page = re.sub(r"\\f[BIR]|\\[,/&]", "", PAGES[f"man/man{name[-1]}/{name}"])
    return page.replace(r"\-", "-").replace(r"\e", "\\")


def parsers(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def test_every_command_has_a_page_and_is_in_the_overview():
    assert {f"man/man1/sandbox-{name}.1" for name in COMMANDS} | {
        "man/man1/sandbox.1",
        "man/man5/sandbox.toml.5",
        "man/man5/sandbox-policy.5",
    } == set(PAGES)
    for name, about in COMMANDS.items():
        assert f"{name}\n{about}" in text("sandbox.1")
        assert f"sandbox-{name} - {about}" in text(f"sandbox-{name}.1")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_on_the_page_of_its_command(name):
    page = text(f"sandbox-{name}.1")
    for parser in parsers(whole_parser()[1][name]):
        for action in parser._actions:
            if action.help not in (None, argparse.SUPPRESS) and not isinstance(action, argparse._HelpAction):
                assert " ".join(action.help.split()) in page, (parser.prog, action.dest)
                assert all(option in page for option in action.option_strings)


def test_every_key_of_the_files_is_on_its_page():
    for key in policy._KEYS:
        assert re.search(rf"^(\w+, )?{key}\b", text("sandbox-policy.5"), re.MULTILINE), key
    assert "\nneeds-network = true" in text("sandbox.toml.5")
    assert "\nallow-syscall\n" in text("sandbox.toml.5")


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
def test_mandoc_finds_nothing_wrong(tmp_path):
    names = share.write(tmp_path)
    shown = [tmp_path / name for name in names if name.startswith("man/")]
    done = subprocess.run(["mandoc", "-Tlint", "-W", "warning", *shown], capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
def test_groff_warns_of_nothing():
    for page in PAGES.values():
        done = subprocess.run(
            ["groff", "-man", "-ww", "-z", "-Tutf8", "-K", "utf8"], input=page, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_roff_of_markdown():
    page = roff.render(
        "# T\n\n## Sec\n\n"
        ".dot `a-b` **bold**\n'quote\n\n- one\n- two\n\n```sh\n.x \\ y\n```\n\n|a|b|c|\n|-|-|-|\n|1|2|3|\n"
    )
    assert page == (
        ".SH SEC\n.PP\n\\&.dot \\fBa\\-b\\fR \\fBbold\\fR\n\\&'quote\n.IP \\(bu 4\none\n.IP \\(bu 4\ntwo\n"
        ".PP\n.RS 4\n.EX\n\\&.x \\e y\n.EE\n.RE\n.TP\n1\nb: 2\n.br\n3\n"
    )


def test_the_reference_has_every_option_and_step():
    commands = reference.PAGES["reference/commands.md"]().replace("\\", "")
    for parser in parsers(whole_parser()[0]):
        for action in parser._actions:
            if action.help not in (None, argparse.SUPPRESS) and not isinstance(action, argparse._HelpAction):
                assert " ".join(action.help.split()) in commands, (parser.prog, action.dest)
    steps = reference.PAGES["reference/steps.md"]()
    assert all(f"| 0x{code:02X} | {step.__name__} |" in steps for code, step in OPCODES.items())


def test_pages_and_links_of_the_site_lead_somewhere():
    """make docs is stricter, and needs mkdocs."""
    sources = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
    sources |= {name: make() for name, make in reference.PAGES.items()}
    listed = re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert set(listed) <= sources.keys()
    for name, source in sources.items():
        for link in re.findall(r"\]\(([\w./-]+\.md)\b", source):
            base = "reference/" if name.startswith("reference/") else ""
            assert os.path.normpath(base + link) in sources, (name, link)
