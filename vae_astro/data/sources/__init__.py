"""The shapes that stamps come in: each a small reader behind one interface."""
