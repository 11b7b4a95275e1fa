"""`python -m worker`: a worker as the environment describes it, for images that hold no command line."""

import sys

from jobs.errors import SettingsError, UnavailableError
from worker.main import run

if __name__ == "__main__":
    try:
        sys.exit(run())
    except (SettingsError, UnavailableError) as error:
        sys.exit(str(error))
