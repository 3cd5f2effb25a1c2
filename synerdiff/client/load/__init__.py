"""Loads: who asks for what and when, sending that to a server, and what came of it. For benchmarks; no torch."""
