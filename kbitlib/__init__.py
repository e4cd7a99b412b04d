"""A laboratory for k-bit inference scaling laws."""

__version__ = "0.1.0"
