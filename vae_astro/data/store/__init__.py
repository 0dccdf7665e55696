"""Stamps decoded once into packed, memory-mapped shards, with a catalogue beside them."""
