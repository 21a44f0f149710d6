"""What pyproject.toml cannot say: the native front takes the place of the command `sandbox` where it was built, the man
pages and completion scripts are made from the code and go to share/, and a wheel is good for every Python.
"""

import os
import shutil
import sys
from pathlib import Path

import setuptools  # brings its distutils
from setuptools.command.bdist_wheel import bdist_wheel

from distutils.command.build_scripts import build_scripts  # isort: skip
from distutils.command.install_data import install_data  # isort: skip

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


class InstallData(install_data):
    """Makes share/ just before it is installed."""

    def run(self) -> None:
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        from manual import share

        made = Path(self.get_finalized_command("build").build_base, "share")
        names = share.write(made)
        self.data_files = [(os.path.join("share", os.path.dirname(name)), [str(made / name)]) for name in names]
        super().run()


class BdistWheel(bdist_wheel):
    """Nothing in it is linked to an interpreter, and the native programs are static: any C library will do, so the
    oldest that package indexes know of.
    """

    def get_tag(self) -> tuple[str, str, str]:
        built = os.path.exists(os.path.join(self.bdist_dir, _FRONT))
        platform = super().get_tag()[2].replace("linux_", "manylinux_2_17_", 1)
        return "py3", "none", platform if built else "any"


# As an argument: in pyproject.toml it would take the place of setuptools-rust's own commands. Without an entry in
# data_files nobody would ask for the data.
setuptools.setup(
    cmdclass={"build_scripts": BuildScripts, "install_data": InstallData, "bdist_wheel": BdistWheel},
    data_files=[("share", [])],
)
