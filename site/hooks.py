"""What the site has beside docs/: the front page, which is README.md; pages of the root; the references; linked sources.

Links are written for a reader of the repository. Those that leave docs/ lead to LAGKV_REPOSITORY, where it is set, else to a page
of the site that shows the file.
"""

import pathlib
import posixpath
import re
import sys

from markdown import Extension
from mkdocs.structure.files import File
from mkdocs.structure.nav import Link
from pymdownx.slugs import slugify

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import cpp_reference  # noqa: E402
import other_references  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
FROM_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LANGUAGES = {".hpp": "cpp", ".cpp": "cpp", ".inl": "cpp", ".h": "c", ".c": "c", ".py": "python", ".rs": "rust", ".toml": "toml",
             ".cmake": "cmake"}
SLUG = slugify(case="lower")
LINK = re.compile(r"(\[[^\]\n]*\]\()([^)\s]+)(\))")
FENCE = re.compile(r"(^[ ]*```.*?^[ ]*```[ ]*$)", re.M | re.S)


class TwoSpaces(Extension):
    """A list in a list is indented by two spaces, as in the repository."""

    def extendMarkdown(self, md):
        md.tab_length = 2


def on_config(config):
    config.markdown_extensions.append(TwoSpaces())
    return config


def on_files(files, config):
    pages = {page: (ROOT / source).read_text() for source, page in FROM_ROOT.items()}
    pages.update(cpp_reference.pages(ROOT))
    pages.update(other_references.pages(ROOT))
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "site.css", content=(ROOT / "site" / "site.css").read_text()))
    if not config.repo_url:
        linked = {s for f in files.documentation_pages() for s in sources_of(f)}
        for source in sorted({s for folder in linked for s in files_of(folder)}):
            files.append(File.generated(config, page_of(source), content=shown(source)))
    return files


def on_nav(nav, config, files):
    """Below "In your engine": each engine, a section of the one page."""
    page = files.get_file_from_path("engines.md").page
    for heading in re.findall(r"^## (.+)$", FENCE.sub("", page.file.content_string), re.M)[1:]:  # the first one is for all
        page.parent.children.append(Link(heading, f"{page.file.url}#{SLUG(heading, '-')}"))
        page.parent.children[-1].parent = page.parent
    return nav


def on_page_markdown(markdown, page, config, files):
    """Links to sources, and from the pages of the root, as the site has them."""
    here = page.file.src_uri

    def moved(link):
        target = target_of(here, link[2])
        if target is None:
            return link[0]
        path, anchor = target
        if path in FROM_ROOT:
            there = FROM_ROOT[path]
        elif path.startswith("docs/"):
            there = path[len("docs/"):]
        elif config.repo_url:
            return link[1] + config.repo_url.rstrip("/") + "/blob/HEAD/" + path + anchor + link[3]
        else:
            there = page_of(path)
        text = link[1]
        if text == f"[{link[2].partition('#')[0]}](":  # a path says nothing to a reader of the site
            text = f"[{title_of(files.get_file_from_path(there), path, anchor)}]("
        return text + posixpath.relpath(there, posixpath.dirname(here) or ".") + anchor + link[3]

    return outside_code(markdown, lambda text: LINK.sub(moved, text))


def on_page_content(html, page, config, files):
    """Policies in tables may go on in the next line behind a comma."""
    def breakable(cell):
        return re.sub(r"<code>[^<]*</code>", lambda code: re.sub(r",(?! )", ",<wbr>", code[0]), cell[0])

    return re.sub(r"<td.*?</td>", breakable, html, flags=re.S)


# ---- links --------------------------------------------------------------------------------------------------------------


def title_of(file, path, anchor):
    """The heading that a link leads to."""
    shown = file is not None and path.endswith(".md")
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", file.content_string), re.M) if shown else []
    plain = [re.sub(r"[`*]", "", h) for h in headings]
    return next((h for h in plain if anchor and "#" + SLUG(h, "-") == anchor), plain[0] if plain else posixpath.basename(path))


def outside_code(markdown, change):
    return "".join(part if i % 2 else change(part) for i, part in enumerate(FENCE.split(markdown)))


def target_of(page, link):
    """The path in the repository that a link of a page of the repository leads to, and the anchor; None for others."""
    path, _, anchor = link.partition("#")
    if not path or "://" in link or page.startswith("reference/"):
        return None
    if page.startswith("source/") and not page.endswith("README.md"):
        return None
    if page in FROM_ROOT.values():
        folder = ""
    else:
        folder = posixpath.dirname(page.removeprefix("source/") if page.startswith("source/") else f"docs/{page}")
    return posixpath.normpath(posixpath.join(folder, path)), f"#{anchor}" if anchor else ""


def sources_of(file):
    """The files and folders of the repository, no pages themselves, that a page links to."""
    found = []

    def look(text):
        for link in LINK.finditer(text):
            target = target_of(file.src_uri, link[2])
            if target and target[0] not in FROM_ROOT and not target[0].startswith("docs/"):
                found.append(target[0])
        return text

    outside_code(file.content_string, look)
    return found


def files_of(source):
    """A file; or a folder and all that it shows."""
    path = ROOT / source
    if path.is_dir():
        yield source
        for below in path.rglob("*"):
            if below.is_file() and below.suffix in LANGUAGES and "target" not in below.parts:
                yield below.relative_to(ROOT).as_posix()
    elif path.is_file():
        yield source
    else:
        raise FileNotFoundError(f"{source}: a page links to it")


def page_of(source):
    return f"source/{source}.md" if not source.endswith(".md") else f"source/{source}"


def shown(source):
    path = ROOT / source
    if path.is_dir():
        entries = [s for s in sorted(files_of(source)) if s != source]
        return f"# {source}\n\n" + "".join(
            f"- [{s[len(source) + 1:]}]({posixpath.relpath(page_of(s), posixpath.dirname(page_of(source)))})\n" for s in entries)
    text = path.read_text()
    if source.endswith(".md"):
        return text
    return f"# {source}\n\n``````{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n``````\n"
