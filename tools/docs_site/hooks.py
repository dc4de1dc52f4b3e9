"""A hook of MkDocs: the pages stay where GitHub shows them, and their links work in the site too.

The site holds ``docs/``, and what its pages link to elsewhere in the repository, below the same
path as there: pages such as ``demo/README.md``, and other text files, as a page that shows them. A
link to a binary file becomes its name, because the site does not carry weights.
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = [
    "links",
    "on_config",
    "on_files",
    "on_page_markdown",
    "slug",
    "source_of",
    "with_links_of_the_site",
]

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
HOME = "README.md"
STYLE = Path(__file__).with_name("site.css")
# Lexers of Pygments, by suffix; of a file without one it is plain text.
LANGUAGES = {".yaml": "yaml", ".cff": "yaml", "": "text"}

_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_TARGET = r"(?!\w+:)(?P<target>[^)\"\s]+)"  # not of another site
_LINK = re.compile(rf"(?P<before>\]\(|\b(?:src|href|srcset)=\"){_TARGET}(?P<after>[)\"])")
_LINK_WITH_TEXT = re.compile(rf"(?<!!)\[(?P<text>[^\[\]]*)\]\({_TARGET}\)")


def links(text: str) -> list[str]:
    """Targets of a page's links and pictures, without those to other sites."""
    return [match["target"] for match in _LINK.finditer(_FENCE.sub("", text))]


def in_prose(text: str, change: Callable[[str], str]) -> str:
    """The page with ``change(part)`` for all parts between its blocks of code."""
    parts, position = [], 0
    for fence in _FENCE.finditer(text):
        parts += [change(text[position : fence.start()]), fence[0]]
        position = fence.end()
    return "".join([*parts, change(text[position:])])


def slug(heading: str, separator: str = "-") -> str:
    """The anchor of a heading, as GitHub makes it of the text without Markdown."""
    letters = re.sub(r"[^\w\- ]", "", re.sub(r"<[^>]+>", "", heading).strip().lower())
    return letters.replace(" ", separator)


def source_of(page: str, target: str) -> str:
    """What a link means, as a path from the root of the repository, without the anchor."""
    path = target.partition("#")[0]
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page


def has_place(source: str) -> bool:
    """Whether the site has that file of the repository."""
    return source.startswith(DOCS) or Path(source).suffix in (".md", *LANGUAGES)


def in_site(source: str) -> str:
    """The place of a file of the repository in the site."""
    if source.startswith(DOCS):
        return source.removeprefix(DOCS)
    return source if source.endswith(".md") else f"{source}.md"


def linked_from(pages: list[str]) -> Iterator[str]:
    """Files outside ``docs/`` that the pages link to, or that those link to."""
    seen = set(pages)
    while pages:
        page = pages.pop()
        text = (ROOT / page).read_text(encoding="utf-8")
        for source in (source_of(page, target) for target in links(text)):
            if source in seen or not (ROOT / source).is_file():
                continue
            seen.add(source)
            if source.endswith(".md"):
                pages.append(source)
            if has_place(source) and not source.startswith(DOCS):
                yield source


def content(source: str) -> str:
    """The page of a file outside ``docs/``."""
    text = (ROOT / source).read_text(encoding="utf-8")
    if source.endswith(".md"):
        return text
    return f"# {source}\n\n```{LANGUAGES[Path(source).suffix]}\n{text.rstrip()}\n```\n"


def with_links_of_the_site(text: str, source: str) -> str:
    """The text of a page with its links as they are in the site."""
    folder = posixpath.dirname(in_site(source))

    def as_name(match: re.Match) -> str:
        meant = source_of(source, match["target"])
        is_there = (ROOT / meant).is_file()
        return match["text"] if is_there and not has_place(meant) else match[0]

    def moved(match: re.Match) -> str:
        meant = source_of(source, match["target"])
        if match["target"].startswith("#") or not (ROOT / meant).is_file():
            return match[0]  # MkDocs says what is missing
        path = posixpath.relpath(in_site(meant), folder or ".")
        anchor = "".join(match["target"].partition("#")[1:])
        return match["before"] + path + anchor + match["after"]

    return in_prose(text, lambda part: _LINK.sub(moved, _LINK_WITH_TEXT.sub(as_name, part)))


# --- what MkDocs calls


def on_config(config):
    """Anchors as GitHub makes them."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files, config):
    """Adds the README as the start page, what pages link to outside ``docs/``, and the style."""
    from mkdocs.structure.files import File

    pages = [DOCS + file.src_uri for file in files.documentation_pages()]
    for source in (HOME, *linked_from([HOME, *pages])):
        if files.get_file_from_path(in_site(source)) is None:
            files.append(File.generated(config, in_site(source), content=content(source)))
    files.append(File.generated(config, STYLE.name, abs_src_path=str(STYLE)))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """The text of a page before it becomes HTML."""
    name = page.file.src_uri
    source = DOCS + name if (ROOT / DOCS / name).is_file() else name
    return with_links_of_the_site(markdown, source)
