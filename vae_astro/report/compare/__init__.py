"""Runs side by side: which are there, what they came to, in what they differ."""
