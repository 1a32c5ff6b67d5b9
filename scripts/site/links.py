"""Checks the links of the pages as a forge shows them, and those of the built site: links.py [FOLDER OF THE SITE].

Links to other sites are checked by their form: asking them would fail when somebody else's server does.
"""

import html.parser
import pathlib
import posixpath
import re
import sys
import urllib.parse

from pages import ROOT, all_pages, parse

FORM = re.compile(r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(:\d+)?(/\S*)?", re.IGNORECASE)


def of_page(page, anchors):
    """What is wrong with the links of a page of the repository."""
    for line, target in page.links():
        where = f"{page.path}:{line}: {target}"
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            if not FORM.fullmatch(target):
                yield f"{where} is no address with https"
            continue
        path, _, anchor = target.partition("#")
        path, anchor = urllib.parse.unquote(path), urllib.parse.unquote(anchor)
        real = posixpath.normpath(posixpath.join(posixpath.dirname(page.path), path)) if path else page.path
        if real.startswith(("..", "/")):
            yield f"{where} leaves the repository"
        elif not (ROOT / real).exists():
            yield f"{where}: {real} does not exist"
        elif anchor and real.endswith(".md"):
            if real not in anchors:
                anchors[real] = set(parse(real).anchors())
            if anchor not in anchors[real]:
                yield f"{where}: {real} has no heading {anchor}"


def copies(page):
    """Blocks that say from which part of a file they are, and differ from it."""
    for block in page.blocks:
        if "from" not in block.says:
            continue
        path, part = block.says["from"].split(" ")
        text = (ROOT / path).read_text(encoding="utf-8")
        lines = text.splitlines()
        begin = next(nth for nth, line in enumerate(lines) if f"begin {part}" in line)
        end = next(nth for nth, line in enumerate(lines) if f"end {part}" in line)
        wanted = lines[begin + 1 : end]
        indent = min(len(line) - len(line.lstrip(" ")) for line in wanted if line)
        if block.text.strip() != "\n".join(line[indent:] for line in wanted).strip():
            yield f"{page.path}:{block.line}: the block is not {part} of {path}"


class Html(html.parser.HTMLParser):
    """Ids and links of a page of the site."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if given.get("href"):
            (self.loaded if tag == "link" else self.links).append(given["href"])
        if given.get("src"):
            self.loaded.append(given["src"])


def of_site(folder):
    """What is wrong with the links of the built site."""
    read = {path: Html(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    for path, page in read.items():
        name = path.relative_to(folder)
        for target in page.loaded:
            if re.match(r"([a-z]+:)?//", target):
                yield f"{name} loads {target} from another site"
        if name.name == "404.html":
            continue  # its links are from the root, wherever it is shown
        for target in page.links + page.loaded:
            if re.match(r"([a-z][a-z0-9+.-]*:|//)", target):
                continue
            file, _, anchor = target.partition("#")
            file = urllib.parse.unquote(file.partition("?")[0])
            goal = (path.parent / file).resolve() if file else path
            if goal.is_dir():
                goal /= "index.html"
            if not goal.is_relative_to(folder) or not goal.is_file():
                yield f"{name}: {target} does not exist"
            elif anchor and goal in read and urllib.parse.unquote(anchor) not in read[goal].ids:
                yield f"{name}: {target} has no such anchor"
    for page in all_pages():
        shown = page.path[len("docs/") : -len("md")].replace("README.", "index.") + "html"
        if page.path.startswith("docs/") and page.path != "docs/SUMMARY.md" and not (folder / shown).is_file():
            yield f"{page.path} is not in the site: name it in docs/SUMMARY.md"


def main():
    anchors = {}
    found = all_pages()
    wrong = [text for page in found for text in (*of_page(page, anchors), *copies(page))]
    links = sum(len(list(page.links())) for page in found)
    if len(sys.argv) > 1:
        folder = pathlib.Path(sys.argv[1]).resolve()
        wrong += of_site(folder)
        print(f"{len(list(folder.rglob('*.html')))} pages of the site", file=sys.stderr)
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{links} links on {len(found)} pages", file=sys.stderr)


main()
