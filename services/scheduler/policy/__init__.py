"""Policies: admission, the tasks that run, the guidance they skip, and the plan of a tick."""
