"""`python -m lobewise.sender`: a sender as the environment describes it, for images that hold no command line."""

import sys

from lobewise.jobs.errors import SettingsError
from lobewise.sender.main import run

if __name__ == "__main__":
    try:
        run()
    except SettingsError as error:
        sys.exit(str(error))
