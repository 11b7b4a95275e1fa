"""Runs a function on bytes nobody vouches for: in a child process with little memory, little time and no way back.

The child has a private folder, a stripped environment and hard limits on memory, CPU time, file size and open files,
and reaches neither other files nor the network nor other processes, as far as the kernel can see to it (`confinement`).
It answers through files in that folder. If it crashes or dawdles, that is a fault of the input; if somebody ends it
(the kernel, out of memory; an operator), it is not.

    python -I -m pipeline.io.sandbox REQUEST.json     the child's side
"""

import importlib
import json
import logging
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

from pipeline.errors import (
    DamagedFileError,
    NotChestCTError,
    PipelineError,
    ScanTooLargeError,
    UnreadableScanError,
    UnsupportedFormatError,
)
from pipeline.io.confinement import Protection, confine

logger = logging.getLogger(__name__)

_REQUEST: Final = "request.json"
_ANSWER: Final = "answer.json"
_FAULT: Final = "fault.txt"
#: Of an answer: the grid, findings, and a table of what was seen.
_ANSWER_BYTES: Final = 16 << 20

#: Of one text in it; sentences take some hundreds.
_TEXT_LENGTH: Final = 4000

_ERRORS: Final[Mapping[str, type[PipelineError]]] = {
    kind.code: kind
    for kind in (UnreadableScanError, UnsupportedFormatError, DamagedFileError, ScanTooLargeError, NotChestCTError)
}


#: Sent from outside: by the kernel when the machine is out of memory, by an operator, or by whoever ends the worker.
#: What a reader does to itself by what it reads is SIGSEGV, SIGABRT, SIGFPE, SIGBUS, SIGXCPU and the like.
_FROM_OUTSIDE: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

#: A process that is out of CPU time gets SIGXCPU at its soft limit; at the hard one SIGKILL, which looks like a kill
#: from outside.
_CPU_SECONDS_TO_DIE: Final = 10


class ReaderKilledError(MemoryError):
    """The reading child was killed from outside, most often by the kernel because the machine is out of memory.

    No fault of the scan, so no `PipelineError`: the worker tries again, and when that ends the same way, the job ends
    as `out-of-memory`.
    """


class SandboxMissingError(OSError):
    """The kernel does not give all protections, and it was asked that nothing is read without them.

    No fault of the scan, so no `PipelineError`.
    """


@dataclass(frozen=True)
class Confinement:
    """What a child may use.

    Attributes:
        memory_bytes: address space, libraries included (they take about 1 GiB).
        file_bytes: size of any one file that it writes.
        seconds: wall time; CPU time has the same limit.
        readable: paths of files and folders that it may read, besides its own folder and Python.
        open_files: file descriptors.
        is_required: nothing is run unless the kernel gives all protections.
    """

    memory_bytes: int
    file_bytes: int
    seconds: float
    readable: tuple[str, ...] = ()
    open_files: int = 256
    is_required: bool = False


def call_confined(function: str, arguments: Mapping[str, Any], folder: Path, limits: Confinement) -> Any:
    """Run `function(**arguments)` in a child whose working folder is `folder`; its JSON answer is returned.

    Args:
        function: `package.module:name`; takes and returns what JSON can hold, and leaves arrays in `folder`.
        folder: private to this call and empty.

    Raises:
        PipelineError: what the function raised.
        DamagedFileError: the child crashed or did not finish in time.
        ReaderKilledError: the child was killed from outside.
        SandboxMissingError: protections are required, and the kernel does not give all.
    """
    return _answer_of(function, arguments, folder, limits)["result"]


def protections_here() -> frozenset[Protection]:
    """What a child is protected from on this machine, tried in one."""
    with tempfile.TemporaryDirectory(prefix="lobewise-sandbox-") as name:
        answer = _answer_of("os:getcwd", {}, Path(name), Confinement(1 << 30, 1 << 20, 60.0))
    return frozenset(map(Protection, answer["protections"]))


def open_left(folder: Path, name: str) -> IO[bytes]:
    """A file that a child left in its folder, opened only if it is a plain one.

    A link would lead to other files than the child may read, a FIFO would never end.

    Raises:
        DamagedFileError: it is not there, or something else.
    """
    try:
        left = os.fdopen(os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise DamagedFileError("The reader did not leave what it announced.") from error
    if not stat.S_ISREG(os.fstat(left.fileno()).st_mode):
        left.close()
        raise DamagedFileError("The reader did not leave what it announced.")
    return left


def _answer_of(function: str, arguments: Mapping[str, Any], folder: Path, limits: Confinement) -> dict[str, Any]:
    request = {"function": function, "arguments": dict(arguments), "limits": asdict(limits)}
    (folder / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
    exit_code = _run_child(folder, limits.seconds)
    if exit_code != 0:
        raise _failure(exit_code, folder)
    with open_left(folder, _ANSWER) as file:
        text = file.read(_ANSWER_BYTES + 1)
    if len(text) > _ANSWER_BYTES:
        raise DamagedFileError("The reader's answer is larger than any of a scan.")
    try:
        left: dict[str, Any] = _plain(json.loads(text))
    except ValueError as error:
        raise DamagedFileError("The reader did not leave what it announced.") from error
    if missing := left.get("missing"):
        raise SandboxMissingError(f"The reader cannot be kept from {', '.join(missing)} on this machine.")
    if "error" not in left:
        return left
    told = left["error"]
    raise _ERRORS.get(told["code"], DamagedFileError)(told["detail"], evidence=told["evidence"])


def _plain(answer: Any) -> Any:
    """The answer with texts that can be shown: on one line, left to right, of a length.

    Readers see to that for what they quote; this is for a reader that was taken over, or forgot.
    """
    if isinstance(answer, dict):
        return {_plain(key): _plain(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [_plain(value) for value in answer]
    return re.sub(r"[^\x20-\x7e]", "?", answer[:_TEXT_LENGTH]) if isinstance(answer, str) else answer


def _run_child(folder: Path, seconds: float) -> int:
    command = [sys.executable, "-I", "-m", __name__, _REQUEST]
    with (folder / "stderr.txt").open("wb") as stderr:
        # One thread each: a pool of them reserves more address space than the scan.
        one_thread = (
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "MKL_NUM_THREADS",
            "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
        )
        environment = {"PATH": os.defpath, "TMPDIR": str(folder), "LC_ALL": "C.UTF-8", **dict.fromkeys(one_thread, "1")}
        child = subprocess.Popen(  # noqa: S603 (our own interpreter and module; no part of the input is in the command)
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            return child.wait(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise DamagedFileError(f"The reader did not finish within {seconds:g} seconds.") from error
        finally:
            # Also when the caller is interrupted: the child's whole session goes.
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _failure(exit_code: int, folder: Path) -> PipelineError | ReaderKilledError:
    if exit_code < 0:
        # Real-time signals have no name.
        name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
        if -exit_code in _FROM_OUTSIDE:
            logger.warning("the confined reader was ended by %s from outside", name)
            return ReaderKilledError(f"The reader was ended by {name} from outside: most often the memory ran out.")
        return DamagedFileError(f"The reader was ended by {name} while it read the file.", evidence={"signal": name})
    try:
        with open_left(folder, _FAULT) as fault:
            where = fault.read(2000).decode(errors="replace")
    except DamagedFileError:
        where = f"exit status {exit_code}"
    logger.warning("the confined reader failed: %s", where)
    return DamagedFileError("The reader failed on what the file holds.", evidence={"exit_status": exit_code})


# The child's side.


def main(request_name: str) -> int:
    """Confine this very process, then run what the request names."""
    request = json.loads(Path(request_name).read_text(encoding="utf-8"))
    limits = Confinement(**request["limits"])
    cpu_seconds = max(1, round(limits.seconds))
    for what, amount, to_die in (
        (resource.RLIMIT_AS, limits.memory_bytes, 0),
        (resource.RLIMIT_FSIZE, limits.file_bytes, 0),
        (resource.RLIMIT_CPU, cpu_seconds, _CPU_SECONDS_TO_DIE),
        (resource.RLIMIT_NOFILE, limits.open_files, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        _, hard = resource.getrlimit(what)
        top = amount + to_die if hard == resource.RLIM_INFINITY else min(amount + to_die, hard)
        resource.setrlimit(what, (min(amount, top), top))
    protections = confine(Path.cwd(), [Path(path) for path in limits.readable])
    if limits.is_required and (missing := sorted(set(Protection) - set(protections))):
        Path(_ANSWER).write_text(json.dumps({"missing": missing}), encoding="utf-8")
        return 0
    answer: dict[str, Any]
    try:
        module, _, name = request["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        try:
            answer = {"result": function(**request["arguments"]), "protections": protections}
        except PipelineError as error:
            answer = {"error": {"code": error.code, "detail": error.detail, "evidence": error.evidence}}
        except MemoryError:
            detail = "Reading the file needs more memory than this service gives it."
            answer = {"error": {"code": ScanTooLargeError.code, "detail": detail, "evidence": {}}}
    except Exception as error:  # its place is reported; its message may quote a patient's data
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        place_of = f"{type(error).__name__} at " + " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames))
        Path(_FAULT).write_text(place_of, encoding="utf-8")
        return 1
    Path(_ANSWER).write_text(json.dumps(answer), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
