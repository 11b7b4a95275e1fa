"""Lobewise: severity of lung opacities on chest CT, per lobe, over HTTP."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lobewise")
except PackageNotFoundError:  # the source alone, as on a bare GPU machine that only trains
    __version__ = "0+uninstalled"
