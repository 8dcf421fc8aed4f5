"""Owns the measurements: speed against the peers, memory, and counts of instructions."""
