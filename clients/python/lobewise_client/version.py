"""The version, which the build reads without importing the rest."""

__version__ = "0.1.0"
