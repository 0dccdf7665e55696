"""Colours of categories, in every figure the same."""

from __future__ import annotations

__all__ = ["PALETTE"]

PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
"""Colours that the colour-blind tell apart (Okabe & Ito 2008)."""
