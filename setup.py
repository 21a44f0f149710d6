"""What pyproject.toml cannot say: the native front takes the place of the command `sandbox` where it was built."""

import os
import shutil

import setuptools  # brings its distutils

from distutils.command.build_scripts import build_scripts  # isort: skip

_FRONT = os.path.join("sandbox", "bin", "sandbox-engine")


class BuildScripts(build_scripts):
    """Scripts as always, but `sandbox` is the native engine, which is the front under that name."""

    def run(self) -> None:
        super().run()
        # An editable install builds into the source tree.
        for directory in (self.get_finalized_command("build").build_lib, "."):
            if os.access(built := os.path.join(directory, _FRONT), os.X_OK):
                shutil.copy2(built, os.path.join(self.build_dir, "sandbox"))
                return


# As an argument: in pyproject.toml it would take the place of setuptools-rust's own commands.
setuptools.setup(cmdclass={"build_scripts": BuildScripts})
