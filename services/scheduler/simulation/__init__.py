"""The same engine under a virtual clock, with a profile instead of workers."""
