"""The man pages: of the commands from their parsers, of the files from the docs' own pages about them."""

import argparse
import re
from pathlib import Path

from argparse_manpage.compat import get_reproducible_date
from argparse_manpage.manpage import Manpage

from manual import roff
from sandbox import __version__
from sandbox.cli.main import COMMANDS
from sandbox.cli.whole import whole_parser
from sandbox.errors import LOG_FORMATS

_ROOT = Path(__file__).resolve().parents[1]
# The section of docs/setuid.md that is about the policy file.
_POLICY = "The policy"
_COMMON = (
    (
        "exit status",
        """\
| code | meaning |
|---|---|
| 124 | the time of a run was up |
| 125 | sandbox itself failed; one line on stderr says what, why, and what to do |
| 126 | the command cannot be executed |
| 127 | the command was not found |
| else | that of the command; one that dies of a signal makes sandbox die of the same |
""",
    ),
    (
        "environment",
        """\
| variable | meaning |
|---|---|
| `SANDBOX_HOME` | where procdirs, records and cached images are; default `~/.sandbox` |
| `SANDBOX_STATIC`, `SANDBOX_DYNAMIC`, `SANDBOX_TMPDIR` | for the command: where its trees and its scratch space are |
| `SANDBOX_CACHE_MAX_AGE_DAYS`, `SANDBOX_CACHE_MAX_BYTES` | what the reaper of the cache leaves |
| `NO_COLOR` | no colours |
""",
    ),
)


def pages() -> dict[str, str]:
    """Every page, by its path below share."""
    whole, commands = whole_parser()
    names = [f"sandbox-{name}" for name in commands]
    made = {"sandbox.1": _overview(whole, names)}
    for name, parser in commands.items():
        made[f"sandbox-{name}.1"] = _command(parser, f"sandbox-{name}", COMMANDS[name], ["sandbox"])
    made["sandbox.toml.5"] = _file("sandbox.toml", "jobs of sandbox run", _read("job-files.md"), ["sandbox-job"])
    made["sandbox-policy.5"] = _file("sandbox-policy", "what the setuid helper allows", _policy(), ["sandbox-setuid"])
    return {f"man/man{name[-1]}/{name}": text for name, text in made.items()}


def _overview(whole: argparse.ArgumentParser, names: list[str]) -> str:
    """The page of `sandbox` lists the commands; each has its own."""
    short = argparse.ArgumentParser(
        prog="sandbox",
        usage="sandbox [-h] [-V] [--debug] [--log-format FORMAT] COMMAND ...",
        description=whole.description,
        add_help=False,
    )
    short.add_argument("-h", "--help", action="store_true", help="list the commands")
    short.add_argument("-V", "--version", action="store_true", help="print the version")
    short.add_argument("--debug", action="store_true", help="a traceback of what fails")
    short.add_argument("--log-format", choices=LOG_FORMATS, help="what sandbox itself says, as lines of JSON or not")
    rows = [f"| `{name}` | {text} |" for name, text in COMMANDS.items()]
    table = roff.render("\n".join(["| command | meaning |", "|---|---|", *rows]))
    sections = {"commands": table, **{title: roff.render(text) for title, text in _COMMON}}
    also = [*names, "sandbox.toml(5)", "sandbox-policy(5)"]
    return _page(short, "sandbox", "run commands with private filesystems and isolation", sections, also)


def _command(parser: argparse.ArgumentParser, name: str, about: str, also: list[str]) -> str:
    notes, parser.epilog = parser.epilog, None
    sections = {"notes": roff.escape(notes) + "\n"} if notes else {}
    return _page(parser, name, about, sections, also)


def _page(parser: argparse.ArgumentParser, name: str, about: str, sections: dict[str, str], also: list[str]) -> str:
    page = Manpage(parser, {"description": about})
    page.prog = name
    for title, text in sections.items():
        page.add_section(title, ">", text)
    _, _, body = str(page).partition("\n")
    return _title(name, 1) + _tidy(body) + _see_also(also)


def _file(name: str, about: str, markdown: str, also: list[str]) -> str:
    body = f".SH NAME\n{roff.escape(name)} \\- {roff.escape(about)}\n.SH DESCRIPTION\n" + roff.render(markdown)
    return _title(name, 5) + _tidy(body) + _see_also(["sandbox", *also])


def _title(name: str, section: int) -> str:
    """Our own: argparse-manpage escapes the date, which no reader of man pages then takes for one."""
    return (
        f'.TH {roff.escape(name.upper())} "{section}" "{get_reproducible_date()}" "sandbox {__version__}" "sandbox"\n'
    )


def _see_also(names: list[str]) -> str:
    shown = (name if name.endswith(")") else f"{name}(1)" for name in sorted(names))
    return ".SH SEE ALSO\n" + ",\n".join(".BR " + roff.escape(name).replace("(", " (") for name in shown) + "\n"


def _tidy(page: str) -> str:
    """As man(7) wants it: no empty lines, headings on one line, no paragraph right after a heading."""
    page = re.sub(r"^\.SH\n", ".SH ", page, flags=re.MULTILINE)
    page = re.sub(r"\n\n+(?=\.)", "\n", page)
    page = re.sub(r"\n\n+", "\n.PP\n", page)
    return re.sub(r"^(\.S[HS] .*)\n(?:\.PP\n)+", r"\1\n", page, flags=re.MULTILINE).rstrip("\n") + "\n"


def _read(name: str) -> str:
    return (_ROOT / "docs" / name).read_text()


def _policy() -> str:
    """The part of docs/setuid.md that is about the policy file."""
    parts = re.split(r"^## ", _read("setuid.md"), flags=re.MULTILINE)[1:]
    return "\n".join(part.partition("\n")[2] for part in parts if part.partition("\n")[0] == _POLICY)
