"""Policies: who is admitted, who runs, who skips guidance, and what a tick does."""
