"""The batch sizes that peers try."""

SIZES = (1, 4, 8, 16, 24, 32)


def sizes_of(text: str) -> tuple[int, ...]:
    """Sizes by comma, in order; 1 is always among them. Raises ValueError."""
    sizes = {1, *map(int, text.split(","))}
    if min(sizes) < 1:
        raise ValueError(f"{text}: a size below 1")
    return tuple(sorted(sizes))
