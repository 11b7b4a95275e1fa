"""`python -m lobewise.sender`, where the command line is not installed."""

import sys

from lobewise.jobs.errors import SettingsError
from lobewise.sender.main import run

try:
    run()
except SettingsError as error:
    sys.exit(str(error))
