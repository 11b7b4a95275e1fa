"""`lobewise` in a process of its own that has imported everything already: what takes the most time of a short command.

Commands are forked from a server that Python keeps for this. What a command imports by itself is tried elsewhere, in
processes that begin with nothing.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    ["cli", "cli.app", "evaluation.report", "pipeline.quantify", "training.lungs", "api.app"]
)


def run(*arguments: object, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    """`run("score", path)`, as people run it.

    Raises:
        subprocess.TimeoutExpired: it was killed, since it did not end in time.
    """
    command = ["lobewise", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as name:
        out, err = Path(name) / "out", Path(name) / "err"
        process = _FORKED.Process(target=_main, args=(command, dict(os.environ), Path.cwd(), out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, process.exitcode, out.read_text(), err.read_text())


def _main(command: list[str], environment: dict[str, str], folder: Path, out: Path, err: Path) -> None:
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = command
    from cli import main

    main()
