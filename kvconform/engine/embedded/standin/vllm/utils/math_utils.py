"""Whole numbers."""


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(a // -b)


def round_up(x: int, y: int) -> int:
    """The smallest multiple of y that is not below x."""
    return -(x // -y) * y


def round_down(x: int, y: int) -> int:
    """The largest multiple of y that is not above x."""
    return x // y * y
