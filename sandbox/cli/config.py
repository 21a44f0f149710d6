"""`sandbox config`: the defaults from config.toml, each with its origin; and `sandbox run`, which starts from them."""

import argparse
import json
import os
from typing import Any

from sandbox import config, option_file
from sandbox.cli import run, run_options
from sandbox.cli.job import Actions, count_paths_from
from sandbox.config import Place, Setting
from sandbox.errors import UsageError, printable
from sandbox.option_file import Opened


def register(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("config", help="show the defaults from config.toml, and where each comes from")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def main(args: argparse.Namespace) -> int:
    """Show it. Raises UsageError for a file with a mistake."""
    environ = run.callers_environment()
    parser, actions = run.make_parser()
    known = option_file.keys(actions)
    read = {place.origin: _read(opened, parser, actions) for place, opened in config.found(environ)}
    last = {setting.name: origin for origin, settings in read.items() for setting in settings}
    lists = {name for name, key in known.items() if key.kind == "list"}
    files = [
        {"origin": place.origin, "path": os.fsdecode(place.path), "exists": place.origin in read}
        for place in config.places(environ)
    ]
    options = [
        {
            "option": setting.name,
            "word": setting.word,
            "origin": file["origin"],
            "path": file["path"],
            "line": setting.line,
            "used": setting.name in lists or last[setting.name] == file["origin"],
        }
        for file in files
        for setting in read.get(str(file["origin"]), [])
    ]
    if args.json:
        print(json.dumps({"files": files, "options": options}, indent=2))
    else:
        _print(files, options)
    return 0


def _print(files: list[dict[str, Any]], options: list[dict[str, Any]]) -> None:
    for file in files:
        print(f"{file['origin']}\t{printable(file['path'])}{'' if file['exists'] else ' (not there)'}")
    for option in options:
        overridden = "" if option["used"] else ", overridden"
        print(f"{printable(option['word'])}\t{option['origin']}, line {option['line']}{overridden}")


def _read(opened: Opened, parser: argparse.ArgumentParser, actions: Actions) -> list[Setting]:
    """What a file sets, each value tried. Raises UsageError with the file and the line."""
    file, settings = config.read(opened, option_file.keys(actions), run_options.LIMITS)
    for setting in settings:
        try:
            run.make_spec(parser.parse_args([setting.word]), ())
        except UsageError as error:
            # --kill-after and its like are judged with what they go with.
            if setting.name != "kill-after":
                file.problem(setting.path, error.message, error.hint)
    file.refuse_problems()
    return settings


def defaults(parser: argparse.ArgumentParser, actions: Actions) -> argparse.Namespace | None:
    """What all files set, to parse a command line on top of; None without any file. Raises UsageError."""
    merged = None
    for place, opened in config.found(os.environb):
        settings = _read(opened, parser, actions)
        count_paths_from(_directory(place), actions)
        merged = parser.parse_args([setting.word for setting in settings], merged)
        count_paths_from("", actions)
    return merged


def _directory(place: Place) -> str:
    return os.path.dirname(os.fsdecode(place.path))
