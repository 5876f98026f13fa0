"""What the site needs that the repository does without: MkDocs calls this, see `hooks` in mkdocs.yml.

Pages are read in the repository as they are, so they link to files beside `docs/`, `../CONTRIBUTING.md` say. Those
files become part of the site, under `repository/`, and the links lead there. `README.md` of the repository is not one
of them: the site's first page takes its place. What is built opens from the file system, and loads nothing from
elsewhere.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent.parent
PLACE = "repository"
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")  # which the navigation names, or every page may

_LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)")
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside of `docs/`, and what that links to."""
    todo = [*ALWAYS]
    for file in files.documentation_pages():
        todo += _outside(file.content_string, posixpath.join("docs", posixpath.dirname(file.src_uri)))
    seen: set[str] = set()
    while todo:
        path = todo.pop()
        if path in seen or not (ROOT / path).is_file():
            continue
        seen.add(path)
        level = InclusionLevel.INCLUDED if path in ALWAYS else InclusionLevel.NOT_IN_NAV
        made = File.generated(config, f"{PLACE}/{path}", abs_src_path=str(ROOT / path), inclusion=level)
        files.append(made)
        if path.endswith(".md"):
            todo += _outside((ROOT / path).read_text(encoding="utf-8"), posixpath.dirname(path))
    return files


def on_page_markdown(markdown: str, *, page: Any, files: Files, **_: Any) -> str:
    """Have links lead to where the site has what they name."""
    uri = page.file.src_uri
    there = uri.removeprefix(f"{PLACE}/") if uri.startswith(f"{PLACE}/") else posixpath.join("docs", uri)

    def replace(match: re.Match[str]) -> str:
        begin, target, anchor, end = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(there), target))
        if path == "README.md":
            path = "docs/README.md"
        place = path.removeprefix("docs/") if path.startswith("docs/") else f"{PLACE}/{path}"
        if files.get_file_from_path(place) is None:
            return match[0]  # and MkDocs says that it leads nowhere
        return f"{begin}{posixpath.relpath(place, posixpath.dirname(uri))}{anchor or ''}{end}"

    return _LINK.sub(replace, markdown)


def on_post_build(*, config: Any) -> None:
    """Make sure that nobody is asked for anything."""
    for page in Path(config.site_dir).rglob("*.html"):
        if found := _LOADED.search(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page.name} loads {found[1]}")


def _outside(markdown: str, folder: str) -> list[str]:
    """The files of the repository, but outside of `docs/`, that a page in `folder` links to."""
    targets = (match[2] for match in _LINK.finditer(markdown) if "://" not in match[2])
    paths = (posixpath.normpath(posixpath.join(folder, target)) for target in targets)
    return [path for path in paths if not path.startswith(("docs/", "..", os.sep)) and path != "README.md"]
