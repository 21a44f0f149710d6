"""What an install puts into share/: man pages, and completion scripts where the shells look for them."""

from pathlib import Path

from manual import pages
from sandbox.cli.completion import script

_COMPLETIONS = {
    "bash": "bash-completion/completions/sandbox",
    "zsh": "zsh/site-functions/_sandbox",
    "fish": "fish/vendor_completions.d/sandbox.fish",
}


def write(into: Path) -> list[str]:
    """Write all of it below `into`, a share/; the names of the files."""
    files = pages.pages() | {name: script(shell) + "\n" for shell, name in _COMPLETIONS.items()}
    for name, text in files.items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        (into / name).write_text(text)
    return sorted(files)
