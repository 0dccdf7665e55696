"""What the FITS standard (version 4.0) says of the bytes of a file; light to import."""

__all__ = ["BLOCK_BYTES", "CARD_BYTES", "END_CARD", "PIXEL_TYPES", "in_whole_blocks"]

BLOCK_BYTES = 2880
"""Headers and data fill whole blocks (section 3.1)."""
CARD_BYTES = 80
"""Of one keyword record (section 3.3.1)."""
END_CARD = b"END".ljust(CARD_BYTES)
"""The last record of a header (section 4.4.1)."""
PIXEL_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
"""``BITPIX`` to the type of a stored pixel (section 4.4.1)."""


def in_whole_blocks(n_bytes: int) -> int:
    """Bytes that so many take in a file.

    >>> in_whole_blocks(0), in_whole_blocks(1), in_whole_blocks(2880)
    (0, 2880, 2880)
    """
    return -(-n_bytes // BLOCK_BYTES) * BLOCK_BYTES
