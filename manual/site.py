"""mkdocs hook: adds the pages that are made from the README and from the code to those of docs/."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from manual.reference import PAGES


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """mkdocs asks this once it knows the files of docs/."""
    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    return files
