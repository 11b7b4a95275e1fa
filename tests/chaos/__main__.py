"""`python -m tests.chaos`: one or more campaigns; ends with 1 where a promise was broken."""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from tests.chaos.campaign import Plan, run
from tests.support.processes import exit_on_sigterm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=200, help="kill -9 of workers, their children, gateways and Redis")
    parser.add_argument("--others", type=int, default=100, help="all other faults")
    parser.add_argument("--store", choices=["folder", "s3"], default="folder")
    parser.add_argument("--timing", choices=["fast", "shipped"], default="fast", help="leases and pauses of workers")
    parser.add_argument("--pause-seconds", type=float, default=0.7, help="between two faults, on average")
    parser.add_argument("--out", type=Path, help="folder for logs, history and outcome.json; a new one by default")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    folder = (options.out or Path(tempfile.mkdtemp(prefix="lobewise-chaos-"))).resolve()
    plan = Plan(
        seed=options.seed,
        jobs=options.jobs,
        kills=options.kills,
        others=options.others,
        store=options.store,
        timing=options.timing,
        pause_seconds=options.pause_seconds,
    )
    exit_on_sigterm()
    outcome = run(plan, folder)
    (folder / "outcome.json").write_text(outcome.to_json())
    print("\n".join(outcome.lines()))
    print(f"history and logs: {folder}")
    return 0 if outcome.is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
