"""A copy of the front beside a `sandbox-python` of our own: that one says "python" and exits with PYTHON."""

import os
import shutil

from tests.support import archives
from tests.support.archives import Entry

PYTHON = 99


class Front:
    """The command as installed (`compile`), and the front alone (`again`)."""

    def __init__(self, run_sandbox, who, area):
        self.run, self.who, self.area = run_sandbox, who, area
        self.full = run_sandbox.command
        self.directory = area.dir(who.as_user)
        self.alone = area.path / "alone" / "sandbox"
        self.alone.parent.mkdir()
        shutil.copy(self.full, self.alone)
        fake = self.alone.parent / "sandbox-python"
        fake.write_text(f"#!/bin/sh\necho python\nexit {PYTHON}\n")
        fake.chmod(0o755)

    def compile(self, *words, **options):
        self.run.command = self.full
        return self.run(["run", *words], as_user=self.who.as_user, **options)

    def again(self, *words, **options):
        self.run.command = self.alone
        return self.run(["run", *words], as_user=self.who.as_user, **options)

    def files(self):
        directory = self.area.home(self.who.as_user) / "plans"
        return sorted(directory.iterdir()) if directory.exists() else []

    def file(self, name, text="x"):
        path = self.directory / name
        path.write_text(text)
        os.chown(path, self.who.uid, self.who.gid)
        return path

    def image(self, name, text="one"):
        made = archives.make_squashfs(self.area.path / f"{name}.new", [Entry("file", text.encode())])
        return os.replace(made, self.directory / name) or self.directory / name
