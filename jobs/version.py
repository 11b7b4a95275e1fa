"""The version of this distribution, as it is installed: reports, traces and the HTTP document name it."""

from importlib.metadata import version
from typing import Final

__version__: Final = version("lobewise")
