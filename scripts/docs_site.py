"""Hooks of mkdocs.yml: files outside docs/ that its pages link are part of the site.

On GitHub pages link files of the tree by their relative path. A site holds docs/ alone, so what is
linked beyond it is added below repository/, and the links are turned there and back.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = "repository/"
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")


def in_tree(uri):
    """The path in the tree of a file of the site."""
    return uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else "docs/" + uri


def in_site(path):
    """The file of the site that a path of the tree is."""
    return path.removeprefix("docs/") if path.startswith("docs/") else OUTSIDE + path


def targets(path, text):
    """Paths in the tree of the files that a page links."""
    for match in LINK.finditer(text):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))


def on_files(files, config):
    """Adds what is linked beyond docs/, and what those pages link in turn."""
    pages = [file.src_uri for file in files.documentation_pages()]
    while pages:
        path = in_tree(pages.pop())
        for target in targets(path, (ROOT / path).read_text(encoding="utf-8")):
            uri = in_site(target)
            known = files.get_file_from_path(uri) is not None
            if known or not uri.startswith(OUTSIDE) or not (ROOT / target).is_file():
                continue
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
            if uri.endswith(".md"):
                pages.append(uri)
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links to where the files are in the site."""
    here = page.file.src_uri
    folder = posixpath.dirname(in_tree(here))

    def turned(match):
        uri = in_site(posixpath.normpath(posixpath.join(folder, match[2])))
        there = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        return match[1] + there + match[3]

    return LINK.sub(turned, markdown)
