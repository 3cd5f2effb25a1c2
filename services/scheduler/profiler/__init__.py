"""Profiles of devices: measured, kept, set against what happens, and corrected."""
