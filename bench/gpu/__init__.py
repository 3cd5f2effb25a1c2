"""The kit: tests, measures and compares on whatever NVIDIA GPU it is carried to, in minutes and without a network."""
