"""The release that the stand-in follows."""

__version__ = "0.32.0"
__version_tuple__ = (0, 32, 0)
