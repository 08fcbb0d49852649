"""`netweft demo`."""


def demo() -> None:
    """X."""
