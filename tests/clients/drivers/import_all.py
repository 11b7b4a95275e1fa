"""Imports each module of a package: `python import_all.py PACKAGE`, where the package is in the working folder."""

import importlib
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, f"{sys.argv[1]}."):
    importlib.import_module(module.name)
