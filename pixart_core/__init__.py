"""Core library of pixart: the PixArt-alpha method, from data to report."""

__version__ = "0.1.0"
