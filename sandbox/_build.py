"""For the build of the package alone (pyproject.toml): puts the native front in the place of the command `sandbox`."""

import os
import shutil

import setuptools  # noqa: F401  (brings its distutils)

from distutils.command.build_scripts import build_scripts  # isort: skip

_FRONT = os.path.join("sandbox", "bin", "sandbox-engine")


class BuildScripts(build_scripts):
    """Scripts as always, but `sandbox` is the native engine, which is the front under that name, where it was built."""

    def run(self) -> None:
        super().run()
        build_lib = self.get_finalized_command("build").build_lib
        # In the source tree, for an editable install.
        built = [path for path in (os.path.join(build_lib, _FRONT), _FRONT) if os.access(path, os.X_OK)]
        if built:
            shutil.copy2(built[0], os.path.join(self.build_dir, "sandbox"))
