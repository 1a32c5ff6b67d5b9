"""Brings what the pages link to outside docs/ into the book; mdBook starts it as a preprocessor.

Markdown outside docs/ becomes a page as it is, another file a page with its text, a folder a page that lists its files.
Pages below docs/decisions and docs/measurements follow their index, so docs/SUMMARY.md does not name each of them.
Links stay as they are in the sources; here alone they are pointed to these pages.
"""

import json
import os
import posixpath
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Where in the book the pages from outside docs/ are.
OUTSIDE = "repository"
INDEXED = ("decisions", "measurements")
FOLDER_MAX = 12
LANGUAGES = {".toml": "toml", ".yml": "yaml", ".yaml": "yaml", ".json": "json", ".rs": "rust", ".py": "python",
             ".sh": "sh", ".java": "java", ".go": "go", ".mjs": "javascript", ".lua": "lua", ".xml": "xml"}
# [text](target "title"), and ![image](target); code is cut out before.
LINK = re.compile(r"(\]\()([^)\s]+)((?:\s+\"[^\"]*\")?\))")
CODE = re.compile(
    r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)`*\s*?$|(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)", re.DOTALL | re.MULTILINE)


def outside_code(text, change):
    """The text with `change` applied to what is not code."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, change(text[end:])])


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def is_text(path):
    with open(os.path.join(ROOT, path), "rb") as file:
        return b"\0" not in file.read(4096)


def in_book(path):
    """Path in the book of a file of the repository."""
    if path.startswith("docs/") and path.endswith(".md"):
        return path[len("docs/") :]
    return f"{OUTSIDE}/{path}" if path.endswith(".md") else f"{OUTSIDE}/{path or 'files'}.md"


class Book:
    def __init__(self):
        self.wanted = {}  # path in the repository to the chapter

    def point(self, path, text):
        """The text of the page `path` of the repository with its links pointed to pages of the book."""
        here = in_book(path)

        def change(found):
            target, _, anchor = found.group(2).partition("#")
            if not target or re.match(r"[a-z][a-z0-9+.-]*:", target) or target.startswith("/"):
                return found.group()
            real = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            full = os.path.join(ROOT, real)
            if real.startswith("..") or not os.path.exists(full):
                return found.group()  # links.py says it
            if os.path.isdir(full) and os.path.exists(os.path.join(full, "README.md")):
                real = f"{real}/README.md"
            if real.startswith("docs/") and real.endswith((".md", ".png", ".svg")):
                # mdBook makes the index of a folder of its README.
                goal = re.sub(r"(^|/)README\.md$", r"\1index.md", real[len("docs/") :])
            else:
                self.want(real)
                goal = in_book(real)
            relative = posixpath.relpath(goal, posixpath.dirname(here) or ".")
            return found.group(1) + relative + (f"#{anchor}" if anchor else "") + found.group(3)

        return outside_code(text, lambda part: LINK.sub(change, part))

    def want(self, path):
        if path in self.wanted:
            return
        self.wanted[path] = None
        full, name = os.path.join(ROOT, path), path
        if os.path.isdir(full):
            below = sorted(one for one in os.listdir(full) if not one.startswith((".", "__")))
            # Files of a small folder are linked and so become pages; else the book would have the whole repository.
            linked = len(below) <= FOLDER_MAX

            def line(one):
                whole = linked and os.path.isfile(os.path.join(full, one))
                return f"- [{one}]({posixpath.basename(path)}/{one})" if whole else f"- `{one}`"

            text = f"# {path}/\n\n" + "\n".join(map(line, below)) + "\n"
        elif path.endswith(".md"):
            text = read(path)
            name = title(text)
        elif is_text(path):
            fence = "````" if "```" in read(path) else "```"
            language = LANGUAGES.get(os.path.splitext(path)[1], "text")
            text = f"# {path}\n\n{fence}{language}\n{read(path).rstrip()}\n{fence}\n"
        else:
            text = f"# {path}\n\nA binary file.\n"
        self.wanted[path] = chapter(name, self.point(path, text), in_book(path))


def chapter(name, content, path):
    return {"Chapter": {"name": name, "content": content, "number": None, "sub_items": [], "path": path,
                        "source_path": None, "parent_names": []}}


def nest(parent, children):
    """Puts pages below a page: mdBook folds by their numbers."""
    one = parent["Chapter"]
    one["sub_items"] = children
    for nth, child in enumerate(children, 1):
        child["Chapter"]["number"] = [*one["number"], nth]
        child["Chapter"]["parent_names"] = [*one["parent_names"], one["name"]]


def title(text):
    return re.search(r"^# (.*)$", text, re.MULTILINE).group(1)


def below(book, folder):
    """Chapters of the pages of docs/FOLDER, but its index."""
    names = sorted(os.listdir(os.path.join(ROOT, "docs", folder)))
    chapters = []
    for name in names:
        if not name.endswith(".md") or name == "README.md":
            continue
        path = f"docs/{folder}/{name}"
        text = read(path)
        number = re.match(r"0*(\d+)-", name)
        shown = re.sub(r"^\d+\. ", "", title(text))
        shown = f"{number.group(1)}. {shown}" if number else shown
        chapters.append(chapter(shown, book.point(path, text), in_book(path)))
    return chapters


def walk(book, items):
    for item in items:
        one = item.get("Chapter") if isinstance(item, dict) else None
        if one is None:
            continue
        if one["path"]:
            one["content"] = book.point(f"docs/{one['source_path'] or one['path']}", one["content"])
        walk(book, one["sub_items"])
        folder = posixpath.dirname(one["path"] or "")
        if folder in INDEXED:
            nest(item, below(book, folder))


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "supports":
        return
    _, book = json.load(sys.stdin)
    items = book.get("items", book.get("sections"))
    found = Book()
    walk(found, items)
    # What was linked to by the pages just added is there by now, because `want` reads each as it is found.
    pages = [path for path in found.wanted if path.endswith(".md")]
    files = [path for path in found.wanted if not path.endswith(".md")]
    files = sorted(files, key=lambda path: path.split("/"))
    last = max(item["Chapter"]["number"][0] for item in items if "Chapter" in item and item["Chapter"]["number"])
    pages = [found.wanted[path] for path in sorted(pages)]
    pages.append(chapter("Files", "# Files\n\nFiles that the pages link to.\n", f"{OUTSIDE}/files.md"))
    for nth, page in enumerate(pages, last + 1):
        page["Chapter"]["number"] = [nth]
    nest(pages[-1], [found.wanted[path] for path in files])
    items += [{"PartTitle": "In the repository"}, *pages]
    json.dump(book, sys.stdout)


main()
