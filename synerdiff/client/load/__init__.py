"""Loads for benchmarks: their requests and arrivals, sending them to a server, and their results. No torch."""
