"""Reads the pages: their blocks with what stands above them, their links and their headings."""

import pathlib
import re
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

FENCE = re.compile(r"^( *)(`{3,}|~{3,})([^`]*)$")
DIRECTIVE = re.compile(r"^<!-- (file|append|from|figures|not run): (.*?) -->$")
HEADING = re.compile(r"^(#{1,6}) +(.*?)(?: +#+)?$")
TICKS = re.compile(r"(?P<ticks>`+)(?!`)(.*?)(?<!`)(?P=ticks)(?!`)")
# The end of `[text](target "title")`: the text may be on several lines.
LINK = re.compile(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")


@dataclass
class Block:
    """A fenced block."""

    line: int  # of its fence
    language: str
    text: str
    says: dict = field(default_factory=dict)  # directives above it


@dataclass
class Page:
    """A page, with line numbers that begin at 1."""

    path: str
    blocks: list
    prose: list  # (line, text) outside of blocks

    def spans(self):
        """Inline code."""
        for line, text in self.prose:
            for found in TICKS.finditer(text):
                yield line, found.group(2).strip().replace("\\|", "|")

    def links(self):
        for line, text in self.prose:
            for found in LINK.finditer(TICKS.sub("`code`", text)):
                yield line, found.group(1)

    def anchors(self):
        """Ids that a forge gives to the headings: letters, digits, `-` and `_`, blanks become `-`."""
        seen = {}
        for _, text in self.prose:
            heading = HEADING.match(text)
            if heading:
                words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.group(2)).replace("`", "")
                slug = re.sub(r"[^\w\- ]", "", words.replace("\\", "").replace("*", "").lower()).replace(" ", "-")
                again = seen.get(slug, 0)
                seen[slug] = again + 1
                yield f"{slug}-{again}" if again else slug


def parse(path):
    page = Page(path, [], [])
    fence, says = None, {}
    for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
        found = FENCE.match(line)
        if fence is None and found:
            fence, lines = found, []
            page.blocks.append(Block(number, found.group(3).strip(), "", says))
            says = {}
        elif fence is not None and found and found.group(2).startswith(fence.group(2)) and not found.group(3).strip():
            page.blocks[-1].text = "\n".join(lines)
            fence = None
        elif fence is not None:
            lines.append(line[len(fence.group(1)) :])
        else:
            page.prose.append((number, line))
            directive = DIRECTIVE.match(line.strip())
            if directive:
                says = {**says, directive.group(1): directive.group(2)}
            elif line.strip():
                says = {}
    return page


def all_pages():
    """The pages of the repository, without those of dependencies and builds."""
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    return [parse(path.relative_to(ROOT).as_posix()) for path in sorted(paths)]
