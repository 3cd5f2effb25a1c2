"""The alternative to SynerDiff, written as well as its users would: a diffusers pipeline behind a small server."""
