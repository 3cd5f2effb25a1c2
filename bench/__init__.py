"""Workloads, measurements and simulated workers. Never imported by the product."""
