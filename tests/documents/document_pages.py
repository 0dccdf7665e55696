"""README.md and the pages of docs/, taken apart: blocks, commands, links, pictures, settings."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.S | re.M
)
LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(([^)\s]+)[^)]*\)")
FILE_LINE = re.compile(r"^# (?P<path>[\w./-]+/[\w.-]+\.\w+|[\w-]+\.py)(?P<rest>:.*)?$")
COMMAND = re.compile(r"^(python|torchrun|tensorboard|pip|stilts|topcat)\s")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes
    ----------
    page : Path
    line : int
        Of its first line, from 1.
    language : str
        ``bash``, ``python``, ``yaml``; empty for what a program prints.
    text : str
    """

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that this block is to be written to: its first line is ``# path/of/file.py``."""
        found = FILE_LINE.match(self.text.split("\n", 1)[0])
        return found["path"] if found and not found["rest"] else None

    @property
    def is_batch_script(self) -> bool:
        """Whether it is a file for a scheduler, and not what a person types."""
        return self.text.startswith("#!")


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def blocks(page: Path, *languages: str) -> list[Block]:
    """Fenced blocks in their order, of these languages or of all."""
    text = text_of(page)
    found = []
    for match in FENCE.finditer(text):
        indent, inner = match["indent"], match["text"]
        if indent:
            inner = re.sub(rf"^{indent}", "", inner, flags=re.M)
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(page, line, match["language"], inner))
    return [block for block in found if not languages or block.language in languages]


@cache
def prose(page: Path) -> str:
    """The page without its fenced blocks; line numbers stay."""
    return FENCE.sub(lambda match: "\n" * match[0].count("\n"), text_of(page))


def lines_of_shell(text: str) -> list[str]:
    """Commands of a block: continued lines joined, comments taken off, empty lines left out."""
    joined = re.sub(r"\\\n\s*", "", text)
    if re.search(r"^(for|while|until|if|case)\b|<<", joined, re.M):
        return [joined]
    commands = (_without_comment(line).strip() for line in joined.splitlines())
    return [command for command in commands if command]


def _without_comment(line: str) -> str:
    quote = ""
    for k, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and (k == 0 or line[k - 1].isspace()):
            return line[:k]
    return line


@dataclass(frozen=True)
class Command:
    """What a page tells its reader to type.

    Attributes
    ----------
    page : Path
    line : int
    text : str
        As typed, without comment.
    """

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text}"

    @property
    def name(self) -> str:
        """Page and command, for the name of a test."""
        return f"{self.page.stem}:{self.text}"

    def programs(self) -> list[tuple[str, list[str]]]:
        """Each ``X.py`` that it starts, with what it is given."""
        found = []
        for part in re.split(r"&&|\|\||[|;]\s|\n", _without_redirection(self.text)):
            words = shlex.split(part)
            scripts = [k for k, word in enumerate(words) if re.search(r"(^|/)[\w-]+\.py$", word)]
            if scripts and any("python" in word or word == "torchrun" for word in words):
                found.append((words[scripts[0]], words[scripts[0] + 1 :]))
        return found


def _without_redirection(text: str) -> str:
    return re.sub(r"\s\d?>+\s*\S+", "", text)


@cache
def commands(page: Path) -> list[Command]:
    """Commands of the page's bash blocks, its indented lines and its code spans, in this order."""
    found = []
    for block in blocks(page, "bash", "sh"):
        if not block.is_batch_script:
            found += [Command(page, block.line, line) for line in lines_of_shell(block.text)]
    for match in re.finditer(r"^ {4}(?=\S)(.*)$", prose(page), re.M):
        line = _without_comment(match[1]).strip()
        if COMMAND.match(line):
            found.append(Command(page, _line(page, match), line))
    for span in code_spans(page):
        if COMMAND.match(span.text):
            found.append(span)
    return found


@cache
def code_spans(page: Path) -> list[Command]:
    """Code in the running text, a line break within it taken for a space."""
    found = re.finditer(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", prose(page), re.S)
    return [
        Command(page, _line(page, match), " ".join(match[2].split()))
        for match in found
        if "\n\n" not in match[2]
    ]


def _line(page: Path, match: re.Match[str]) -> int:
    return prose(page).count("\n", 0, match.start()) + 1


def without_code(page: Path) -> str:
    """The running text without code spans."""
    return re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", prose(page), flags=re.S)


def pictures(page: Path) -> list[tuple[str, str]]:
    """Alternative text and file of each picture."""
    text = without_code(page)
    found = re.findall(r"!\[([^\]]*)\]\(([^)\s]+)[^)]*\)", text, re.S)
    for tag in re.findall(r"<img\b[^>]*>", text):
        values = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        found.append((values.get("alt", ""), values.get("src", "")))
    return found


def links(page: Path) -> list[str]:
    """Targets of the links, pictures left out."""
    return LINK.findall(without_code(page))


@cache
def anchors(page: Path) -> set[str]:
    """What ``#...`` can point to: headings as GitHub names them, and explicit anchors."""
    found: list[str] = re.findall(r'<a (?:id|name)="([^"]+)"', prose(page))
    counts: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(page), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        n = counts.get(name, 0)
        counts[name] = n + 1
        found.append(f"{name}-{n}" if n else name)
    return set(found)
