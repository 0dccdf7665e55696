"""What many headers have in common: one is parsed by astropy, the others by their difference.

The headers of a survey are the same but for some values. A `HeaderTemplate` is made from one of
them: the bytes that decide how the file is read, which must be equal in every other, and the places
of the values that may differ. Whole columns of headers are compared and parsed at once. Whatever
this does not know for certain is left to astropy, by `NotPlainError`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.io import fits

from vae_astro.data.sources.fits.headers import (
    POSITION_KEYWORDS,
    SCALE_KEYWORDS,
    WCS_KEYWORD,
    WCS_NUMBERS,
    keyword_number,
)
from vae_astro.data.sources.fits.plain_pixels import ImagePlan
from vae_astro.data.sources.fits.standard import BLOCK_BYTES, CARD_BYTES, END_CARD

__all__ = [
    "Columns",
    "HeaderTemplate",
    "NotPlainError",
    "Wanted",
    "find_header",
]

MAX_HEADER_BLOCKS = 40  # of 36 cards each; longer headers are left to astropy
_STANDARD = re.compile(rb"[A-Z0-9_-]+ *")
_STRUCTURE = re.compile(
    r"(SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|BSCALE|BZERO|BLANK|INHERIT)$"
)
_BEGINNING = re.compile(r"(SIMPLE *T|XTENSION *'IMAGE *') *(/|$)")
_NUMBER = re.compile(r" *[+-]?(\d+\.?\d*|\.\d+)(E[+-]?\d+)? *")
_COMMENT = re.compile(r" *(/.*)?")
_INTEGER = re.compile(r" *([+-]?\d{1,18}) *(?:/.*)?")
_REAL = re.compile(r" *([+-]?(?:\d+\.?\d*|\.\d+)(?:E[+-]?\d+)?) *(?:/.*)?")
# An undefined value, a string without a quote inside, or an integer.
_TEXT = re.compile(r" *(?:'([^']*)'|([+-]?\d{1,18})(?![^ /]))? *(?:/.*)?")
_NUMBER_BYTES = np.zeros(256, dtype=bool)
_NUMBER_BYTES[list(b" +-.0123456789E")] = True


class NotPlainError(Exception):
    """A header that only astropy may read."""


@dataclass(frozen=True)
class Wanted:
    """What the headers are read for.

    Attributes
    ----------
    texts : tuple of str
        Keywords whose values are wanted as text.
    values : bool
        Whether position and seeing are wanted too, or nothing but the pixels.
    """

    texts: tuple[str, ...] = ()
    values: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether all keywords are such that only a standard card can hold them."""
        return all(re.fullmatch(r"[A-Z0-9_-]{1,8}", text) for text in self.texts) and not (
            {"COMMENT", "HISTORY", "CONTINUE", "HIERARCH", "END"} & set(self.texts)
        )

    def is_number(self, keyword: str) -> bool:
        """Whether the keyword's number is wanted."""
        return self.values and keyword in _NUMBERS


_NUMBERS = frozenset((*POSITION_KEYWORDS, *SCALE_KEYWORDS, *WCS_NUMBERS))


def find_header(content: memoryview) -> bytes | None:
    """The header at the start of ``content``, to the end of its last block; None without END."""
    for end in range(
        BLOCK_BYTES, min(len(content), MAX_HEADER_BLOCKS * BLOCK_BYTES) + 1, BLOCK_BYTES
    ):
        block = bytes(content[end - BLOCK_BYTES : end])
        at = block.find(END_CARD)
        while at >= 0 and at % CARD_BYTES:
            at = block.find(END_CARD, at + 1)
        if at >= 0:
            return bytes(content[:end])
    return None


@dataclass(frozen=True, eq=False)
class HeaderTemplate:
    """The header of an image, and where another one may differ without being read otherwise.

    Attributes
    ----------
    header : astropy.io.fits.Header
        The one that it was made from.
    is_primary : bool
        Whether it begins a file.
    n_bytes : int
        Length of the header.
    image : ImagePlan or None
        How the pixels are read; None if there are none.
    fields : dict of str to int
        Where the value of each keyword begins, in bytes from the start of the header.
    numeric : frozenset of str
        Keywords whose value is a number in the bytes that the standard fixes.
    fixed, mask : ndarray of uint64
        The bytes that must be equal, the others 0; and 0xFF for each of them.
    """

    header: Any
    is_primary: bool
    n_bytes: int
    image: ImagePlan | None
    fields: dict[str, int]
    numeric: frozenset[str]
    fixed: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(cls, raw: bytes, wanted: Wanted) -> HeaderTemplate:
        """The template of a header, as `find_header` returns it.

        Raises
        ------
        NotPlainError
            If astropy alone can tell what the header says.
        """
        if not all(32 <= byte < 127 for byte in raw):
            raise NotPlainError("the header is not printable ASCII")
        cards = [raw[at : at + CARD_BYTES] for at in range(0, len(raw), CARD_BYTES)]
        n_cards = cards.index(END_CARD)
        if any(card.strip() for card in cards[n_cards + 1 :]):
            raise NotPlainError("something follows END")
        fields: dict[str, int] = {}
        numeric = set()
        mask = np.full(len(raw), 0xFF, dtype=np.uint8)
        for k, card in enumerate(cards[:n_cards]):
            first = k * CARD_BYTES
            keyword = _keyword(card)
            if card.startswith(b"CONTINUE") and k:  # a long string: all or nothing
                mask[first - CARD_BYTES : first + CARD_BYTES] = 0xFF
            elif keyword is None:
                mask[first + _free_from(card) : first + CARD_BYTES] = 0
            else:
                if keyword in fields and (_STRUCTURE.match(keyword) or keyword in wanted.texts):
                    raise NotPlainError(f"{keyword} stands twice")
                fields.setdefault(keyword, first + 10)
                free, is_numeric = _free(keyword, card[10:].decode(), wanted)
                mask[first + 10 : first + 10 + free] = 0
                if is_numeric:
                    numeric.add(keyword)
        values = {name: raw[at : at + 70].decode() for name, at in fields.items()}
        image = _image_plan(values)
        header = fits.Header.fromstring(raw)
        _require_once(header, fields, numeric, wanted)
        fixed = np.frombuffer(raw, dtype=np.uint8) & mask
        return cls(
            header=header,
            is_primary=raw.startswith(b"SIMPLE  ="),
            n_bytes=len(raw),
            image=image,
            fields=fields,
            numeric=frozenset(numeric),
            fixed=fixed.view(np.uint64),
            mask=mask.view(np.uint64),
        )

    @property
    def n_blocks(self) -> int:
        """Blocks of header and pixels together."""
        n_data = self.image.n_bytes if self.image else 0
        return self.n_bytes // BLOCK_BYTES - (-n_data // BLOCK_BYTES)

    def matches(self, rows: np.ndarray) -> np.ndarray:
        """Which of the headers this template reads.

        Parameters
        ----------
        rows : ndarray of uint64, shape (N, n_bytes / 8)
            Headers of its length.

        Returns
        -------
        ndarray of bool, shape (N,)
        """
        same = ((rows & self.mask) == self.fixed).all(axis=1)
        if not same.any():
            return same
        letters = rows.view(np.uint8)
        return same & (letters.max(axis=1) < 127) & (letters.min(axis=1) >= 32)

    def says(self, keywords: tuple[str, ...]) -> bool:
        """Whether one of the keywords is there."""
        return not self.fields.keys().isdisjoint(keywords)


class Columns:
    """Values of many headers of one template, a column for each keyword.

    Attributes
    ----------
    template : HeaderTemplate
        Of all of them.
    odd : ndarray of bool, shape (N,)
        Headers with a value that only astropy may read, of those that were asked for so far.
    """

    def __init__(self, template: HeaderTemplate, rows: np.ndarray) -> None:
        self.template = template
        self.odd = np.zeros(len(rows), dtype=bool)
        self._letters = rows.view(np.uint8)

    @property
    def header(self) -> Any:
        """What holds for all of them: comments, axes, units."""
        return self.template.header

    def texts(self, keyword: str) -> list[str]:
        """As `keyword_text` of each header."""
        n = len(self.odd)
        if keyword not in self.template.fields:
            return [""] * n
        at = self.template.fields[keyword]
        column = self._letters[:, at : at + 70].tobytes().decode("ascii")
        texts = []
        for k in range(n):
            match = _TEXT.fullmatch(column, 70 * k, 70 * k + 70)
            text, integer = match.groups() if match else (None, None)
            # astropy takes a string such as 'AXIS: 1' for another keyword.
            if match is None or (text and ": " in text):
                self.odd[k] = True
            texts.append(str(int(integer)) if integer else (text or "").strip())
        return texts

    def numbers(self, keyword: str) -> np.ndarray:
        """As `keyword_number` of each header, NaN where it is absent."""
        if keyword not in self.template.numeric:  # then it is the same in all of them
            return np.full(len(self.odd), keyword_number(self.header, keyword))
        at = self.template.fields[keyword]
        column = np.ascontiguousarray(self._letters[:, at : at + 20])
        usable = _NUMBER_BYTES[column].all(axis=1)
        texts = column.view("S20")[:, 0]
        try:
            numbers = texts.astype(np.float64)
        except ValueError:
            numbers = np.array([_float(text) for text in texts.tolist()])
            usable &= ~np.isnan(numbers)
        self.odd |= ~usable
        return numbers


def _keyword(card: bytes) -> str | None:
    """Keyword of a card that holds a value as the standard has it."""
    standard = card[8:10] == b"= " and _STANDARD.fullmatch(card[:8])
    return card[:8].decode().rstrip() if standard else None


def _free_from(card: bytes) -> int:
    """Where a card without a standard value may begin to differ."""
    if card[:8] in (b"COMMENT ", b"HISTORY ", b"        "):
        return 8
    if card.startswith(b"HIERARCH ") and b"=" in card:
        return card.index(b"=") + 1
    return CARD_BYTES


def _free(keyword: str, value: str, wanted: Wanted) -> tuple[int, bool]:
    """How many bytes of a value may differ, and whether it is a number in standard form."""
    if _STRUCTURE.match(keyword):
        return 0, False
    if wanted.is_number(keyword):
        # The comment may hold the unit, and nothing of the number may reach into it.
        if _NUMBER.fullmatch(value[:20]) and value[20] in " /" and _COMMENT.fullmatch(value[20:]):
            return 20, True
        return (70 if keyword in POSITION_KEYWORDS else 0), False
    return (0 if wanted.values and WCS_KEYWORD.match(keyword) else 70), False


def _require_once(header: Any, fields: dict[str, int], numeric: set[str], wanted: Wanted) -> None:
    """Every keyword that matters stands in one standard card or, for astropy too, in none."""
    try:
        counts = Counter(header.keys())
        for keyword in counts.keys() & set(SCALE_KEYWORDS):
            str(header.comments[keyword])  # the unit
    except Exception as error:  # astropy reads a header card by card, and fails when it has to
        raise NotPlainError(f"astropy does not read it: {error}") from error
    structure = ("SIMPLE", "XTENSION", "BITPIX", "NAXIS", "PCOUNT", "GCOUNT", "GROUPS")
    scaling = ("BSCALE", "BZERO", "BLANK")
    numbers = _NUMBERS if wanted.values else frozenset[str]()
    for keyword in {*structure, *scaling, *wanted.texts, *numbers}:
        if counts[keyword] != (keyword in fields):
            raise NotPlainError(f"{keyword} stands in an unusual way")


def _image_plan(values: dict[str, str]) -> ImagePlan | None:
    """How the pixels are read; None if there are none.

    Raises
    ------
    NotPlainError
        If the structure is not that of a simple image.
    """
    names = list(values)
    if not _BEGINNING.match(names[0] + values[names[0]]):
        raise NotPlainError(f"begins with {names[0]} = {values[names[0]]}")
    n_axes = _integer(values, "NAXIS")
    axes = [f"NAXIS{k + 1}" for k in range(n_axes)] if n_axes < 10 else []
    if names[1 : 3 + n_axes] != ["BITPIX", "NAXIS", *axes]:
        raise NotPlainError("the keywords do not begin in the standard's order")
    if "GROUPS" in values or _integer(values, "PCOUNT", 0) or _integer(values, "GCOUNT", 1) != 1:
        raise NotPlainError("there are groups")
    bitpix = _integer(values, "BITPIX")
    if n_axes == 0:
        return None
    blank = _integer(values, "BLANK") if "BLANK" in values else None
    try:
        return ImagePlan(
            shape=tuple(_integer(values, axis) for axis in reversed(axes)),
            bitpix=bitpix,
            scale=_real(values, "BSCALE", 1.0),
            zero=_real(values, "BZERO", 0.0),
            blank=blank,
        )
    except ValueError as error:
        raise NotPlainError(str(error)) from error


def _integer(values: dict[str, str], keyword: str, absent: int | None = None) -> int:
    if keyword not in values and absent is not None:
        return absent
    match = _INTEGER.fullmatch(values.get(keyword, ""))
    if match is None:
        raise NotPlainError(f"{keyword} is no plain integer")
    return int(match[1])


def _real(values: dict[str, str], keyword: str, absent: float) -> float:
    if keyword not in values:
        return absent
    match = _REAL.fullmatch(values[keyword])
    if match is None:
        raise NotPlainError(f"{keyword} is no plain number")
    return float(match[1])


def _float(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
