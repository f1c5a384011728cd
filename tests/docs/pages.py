"""The blocks and the commands of the README and of the docs' pages."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
REASON = re.compile(r"<!-- (not run|parsed): (\S.*\S) -->")
INCLUDED = re.compile(r'^--8<-- "([^":]+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and how the comment above it wants it taken: run, parsed, not run."""

    page: str
    line: int
    language: str
    text: str
    how: str

    @property
    def file(self):
        """The name of the file that the block is: its first line is a comment with nothing else in it."""
        found = re.fullmatch(r"# ([\w-]+\.(?:py|toml))", self.text.partition("\n")[0])
        return found[1] if found else None


def blocks(page):
    found, lines, start = [], PAGES[page].read_text(encoding="utf-8").splitlines(), None
    for number, line in enumerate(lines):
        if start is None and line.startswith("```"):
            start = number
        elif start is not None and line == "```":
            reason = REASON.fullmatch(lines[start - 1]) if start else None
            text = "\n".join(lines[start + 1 : number]) + "\n"
            text = INCLUDED.sub(lambda mark: (ROOT / mark[1]).read_text(encoding="utf-8"), text)
            found.append(Block(page, start + 1, lines[start][3:], text, reason[1] if reason else "run"))
            start = None
    assert start is None, f"{page}: the block of line {start} is never closed"
    return found


def commands(block):
    """The commands of a bash block, a line each."""
    text = block.text.replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def inline(page):
    """Commands between backticks in a page's running text."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page].read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(words.split()) for words in re.findall(r"`((?:fedpara|python -m) [^`]+)`", text)]
