"""install.py DESTDIR SITE: put the project where a distribution's packages have it, below DESTDIR.

SITE is the directory of Python's packages there. The native programs must have been built; cargo puts them into
$CARGO_TARGET_DIR/release. What depends on the package's scripts (systemd's units and so on) is the package's affair.
"""

import shutil
import sys
import tomllib
from os import environ
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
# In the package, beside the engine, which is the front under any other name and finds its Python beside itself.
PYTHON = """\
#!/usr/bin/python3 -I
# What the command `sandbox` starts for everything that it cannot do itself.
from sandbox.cli.main import main

main()
"""


def main(root: Path, site: str) -> None:
    """Everything of both packages, `sandbox` and `sandbox-setuid`."""
    built = Path(environ.get("CARGO_TARGET_DIR", TOP / "setuid-helper" / "target")) / "release"
    package = root / site.lstrip("/") / "sandbox"
    shutil.copytree(TOP / "sandbox", package, ignore=shutil.ignore_patterns("bin", "__pycache__", ".*"))
    program(built / "sandbox-engine", package / "bin" / "sandbox-engine")
    text(package / "bin" / "sandbox-python", PYTHON, mode=0o755)
    metadata(package.parent)
    commands = root / "usr" / "bin"
    commands.mkdir(parents=True)
    (commands / "sandbox").symlink_to(f"..{site.removeprefix('/usr')}/sandbox/bin/sandbox-engine")
    # Where another package has the first name: packaging/README.md.
    (commands / "sandbox-run").symlink_to("sandbox")
    program(built / "sandbox-helper", root / "usr" / "libexec" / "sandbox" / "sandbox-helper")
    policy(root / "etc" / "sandbox" / "policy.toml")


def program(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)


def text(path: Path, content: str, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)


def metadata(site: Path) -> None:
    """For importlib.metadata: version and entry points. What is required, the package's own metadata says."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    where = site / f"{project['name'].replace('-', '_')}-{version()}.dist-info"
    lines = (f"{key}: {value}" for key, value in fields(project))
    text(where / "METADATA", "\n".join(lines) + "\n")
    for group, points in project["entry-points"].items():
        lines = (f"{name} = {module}" for name, module in points.items())
        text(where / "entry_points.txt", f"[{group}]\n" + "\n".join(lines) + "\n")


def fields(project: dict[str, str]) -> list[tuple[str, str]]:
    return [
        ("Metadata-Version", "2.1"),
        ("Name", project["name"]),
        ("Version", version()),
        ("Summary", project["description"]),
        ("License", project["license"]),
        ("Requires-Python", project["requires-python"]),
    ]


def version() -> str:
    sys.path.insert(0, str(TOP))
    sys.dont_write_bytecode = True
    import sandbox

    return sandbox.__version__


def policy(path: Path) -> None:
    from sandbox.policy import packaged

    text(path, packaged())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
