"""Mosaics and catalogues: stamps cut around positions."""
