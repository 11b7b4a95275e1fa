"""`python -m api`: a gateway as the environment describes it, for images that hold no command line."""

import sys

from api.app import run
from jobs.errors import SettingsError, UnavailableError

if __name__ == "__main__":
    try:
        run()
    except (SettingsError, UnavailableError) as error:
        sys.exit(str(error))
