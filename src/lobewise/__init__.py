"""Lobewise: severity of lung opacities on chest CT, per lobe, over HTTP."""

from importlib.metadata import version

__version__ = version("lobewise")
