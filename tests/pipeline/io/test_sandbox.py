"""A child that crashes, dawdles, takes too much or answers: each ends in words, never in a hang."""

import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from pipeline.errors import DamagedFileError, PipelineError, ScanTooLargeError
from pipeline.io import sandbox
from pipeline.io.confinement import Protection
from pipeline.io.sandbox import Confinement, ReaderKilledError, SandboxMissingError, call_confined, protections_here
from worker.task import is_out_of_memory

ROOMY = Confinement(memory_bytes=4 << 30, file_bytes=1 << 20, seconds=60.0)
RUN = "timeit:timeit"  # runs any code in the child; what it finds it writes into its folder


def call(function: str, folder: Path, limits: Confinement = ROOMY, **arguments: object) -> object:
    return call_confined(function, arguments, folder, limits)


def run(code: str, folder: Path, limits: Confinement = ROOMY) -> str:
    """What `code` assigns to `found` in the child."""
    call(RUN, folder, limits, stmt=f"{code}\nopen('found', 'w').write(str(found))", number=1)
    return (folder / "found").read_text()


def test_the_answer_comes_back(tmp_path: Path) -> None:
    assert call("json:loads", tmp_path, s='{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}


# What code that took the reader over could do


def test_this_machine_gives_all_protections() -> None:
    """Where it does not, the tests below would say so one by one; CI and developers' machines do."""
    assert protections_here() == set(Protection)


ESCAPES = {
    "open a socket": "import socket; socket.socket()",
    "connect by a UNIX socket": "import socket; socket.socketpair()",
    "start a program": "import subprocess; subprocess.run(['/bin/true'])",
    "become another program": "import os; os.execv('/bin/true', ['true'])",
    "fork": "import os; os.fork()",
    "read another file": "open(OUTSIDE).read()",
    "list another folder": "import os; os.listdir(os.path.dirname(OUTSIDE))",
    "read another file by a link": "import os; os.symlink(OUTSIDE, 'link')",
    "write to another file": "open(OUTSIDE, 'a')",
    "make a file elsewhere": "open(OUTSIDE + '.new', 'w')",
    "cut another file": "import os; os.truncate(OUTSIDE, 0)",
    "delete another file": "import os; os.unlink(OUTSIDE)",
    "let others read a file": "import os; os.chmod(OUTSIDE, 0o777)",
    "change its input": "open(INPUT, 'a')",
    "leave a FIFO": "import os; os.mkfifo('answer.json')",
    "read a password file": "open('/etc/passwd').read()",
    "read its parent's environment": "open(f'/proc/{PARENT}/environ').read()",
    "read its parent's memory": "open(f'/proc/{PARENT}/mem', 'rb').read(1)",
    "signal its parent": "import os; os.kill(PARENT, 0)",
    "signal everybody": "import os; os.kill(-1, 0)",
    "change its parent's limits": "import resource; resource.prlimit(PARENT, resource.RLIMIT_CORE, (0, 0))",
    "leave its session": "import os; os.setsid()",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_the_child_cannot(name: str, tmp_path: Path) -> None:
    (folder := tmp_path / "own").mkdir()
    for file in ("outside", "input"):
        (tmp_path / file).write_text("Doe^Jane")
    names = f"OUTSIDE, INPUT, PARENT = {str(tmp_path / 'outside')!r}, {str(tmp_path / 'input')!r}, {os.getpid()}"
    tried = f"""
{names}
assert open(INPUT).read() == 'Doe^Jane'
try:
    {ESCAPES[name]}
    found = 'it could'
except PermissionError as error:
    found = 'refused'
"""
    assert run(tried, folder, replace(ROOMY, readable=(str(tmp_path / "input"),))) == "refused"
    assert (tmp_path / "outside").read_text() == "Doe^Jane"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input", "outside", "own"]


def test_the_child_may_have_threads(tmp_path: Path) -> None:
    code = "import threading; seen = []; t = threading.Thread(target=seen.append, args=(1,)); t.start(); t.join()"
    assert run(f"{code}; found = seen", tmp_path) == "[1]"


def test_nothing_is_read_where_protections_are_required_and_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("json:loads", tmp_path, replace(ROOMY, is_required=True), s="1") == 1
    # What a child on a lesser kernel answers.
    monkeypatch.setattr(sandbox, "_run_child", lambda folder, _: write(folder / "answer.json", {"missing": ["files"]}))
    with pytest.raises(SandboxMissingError, match="kept from files"):
        call("json:loads", tmp_path, replace(ROOMY, is_required=True), s="1")


def write(path: Path, answer: object) -> int:
    path.write_text(json.dumps(answer))
    return 0


# Where the kernel gives no protection, the parent still believes nothing


@pytest.mark.parametrize("left", ["link", "FIFO", "folder", "socket", "nothing", "no JSON", "too long"])
def test_an_answer_that_is_no_plain_file_is_not_read(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = tmp_path / "answer.json"
    (tmp_path / "secret").write_text('{"result": "of another patient"}')
    if left == "link":
        answer.symlink_to(tmp_path / "secret")
    elif left == "FIFO":
        os.mkfifo(answer)
    elif left == "folder":
        answer.mkdir()
    elif left == "socket":
        socket.socket(socket.AF_UNIX).bind(str(answer))
    elif left != "nothing":
        answer.write_bytes(b"{" if left == "no JSON" else b" " * (17 << 20))
    monkeypatch.setattr(sandbox, "_run_child", lambda *_: 0)
    with pytest.raises(DamagedFileError):
        call("json:loads", tmp_path, s="1")


def test_the_child_sees_nothing_of_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    seen = run("import os; found = '\\n'.join(f'{k}={v}' for k, v in os.environ.items())", tmp_path)
    assert "hidden" not in seen
    assert f"TMPDIR={tmp_path}" in seen


def test_its_working_folder_is_the_one_given(tmp_path: Path) -> None:
    assert call("os:getcwd", tmp_path) == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "amount"), [("AS", 4 << 30), ("FSIZE", 1 << 20), ("CPU", 70), ("NOFILE", 256), ("CORE", 0)]
)
def test_limits_are_hard(name: str, amount: int, tmp_path: Path) -> None:
    hard = run(f"import resource; found = resource.getrlimit(resource.RLIMIT_{name})[1]", tmp_path)
    assert int(hard) == amount


def test_a_file_ends_at_its_limit(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError):
        run("found = 3_000_000 * 'x'", tmp_path)
    assert (tmp_path / "found").stat().st_size <= 1 << 20


def test_memory_ends_at_its_limit(tmp_path: Path) -> None:
    with pytest.raises(ScanTooLargeError, match="more memory"):
        call("numpy:ones", tmp_path, shape=10**10)


@pytest.mark.parametrize("name", ["KILL", "TERM", "HUP", "INT"])
def test_a_child_that_somebody_else_ends_is_no_fault_of_the_file(name: str, tmp_path: Path) -> None:
    """As the kernel does when the machine is out of memory: the worker tries again, then says `out-of-memory`."""
    with pytest.raises(ReaderKilledError, match=f"ended by SIG{name} from outside") as caught, killing(name, tmp_path):
        run("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)", tmp_path)
    assert not isinstance(caught.value, PipelineError)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("name", ["SEGV", "ABRT", "XCPU", "BUS", "FPE", "ILL"])
def test_a_child_that_breaks_on_what_it_reads_is_never_tried_again(name: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=f"ended by SIG{name}") as caught:
        run(
            f"import signal; signal.signal(signal.SIG{name}, signal.SIG_DFL); signal.raise_signal(signal.SIG{name})",
            tmp_path,
        )
    assert caught.value.evidence == {"signal": f"SIG{name}"}
    assert not is_out_of_memory(caught.value)


def test_out_of_cpu_time_is_the_files_own_fault(tmp_path: Path) -> None:
    """At the hard limit the kernel would kill, as it does when memory runs out."""
    hurried = Confinement(memory_bytes=4 << 30, file_bytes=1 << 20, seconds=2.0)
    with pytest.raises(DamagedFileError):
        call("math:factorial", tmp_path, hurried, x=10**7)


def test_a_child_that_dawdles_is_ended_with_all_it_started(tmp_path: Path) -> None:
    hurried = Confinement(memory_bytes=4 << 30, file_bytes=1 << 20, seconds=3.0)
    with pytest.raises(DamagedFileError, match="within 3 seconds"):
        run("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)", tmp_path, hurried)
    pid = int((tmp_path / "pid").read_text())
    while is_alive(pid):  # the test's own limit ends this
        time.sleep(0.05)


@contextmanager
def killing(name: str, folder: Path) -> Iterator[None]:
    """Sends the signal to the child that writes its `pid` into the folder."""

    def kill() -> None:
        while not (folder / "pid").is_file() or not (text := (folder / "pid").read_text()):
            time.sleep(0.02)
        os.kill(int(text), signal.Signals[f"SIG{name}"])

    thread = Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def is_alive(pid: int) -> bool:
    """Not counting what is dead and only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_unexpected_fault_is_logged_by_place_not_by_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(DamagedFileError, match="reader failed") as caught:
        call("builtins:int", tmp_path, x="Doe^Jane")
    assert "TypeError at" in caplog.text
    with caplog.at_level(logging.WARNING), pytest.raises(DamagedFileError):
        call("fractions:Fraction", tmp_path, numerator="Doe^Jane")
    assert "ValueError at" in caplog.text
    assert "Jane" not in caplog.text + str(caught.value)


def test_what_the_function_raises_comes_back_typed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "scan.nrrd").write_bytes(b"NRRD0004\n")
    arguments = {"path": str(tmp_path / "folder"), "max_voxels": 1, "max_bytes": 10**6, "max_files": 0}
    with pytest.raises(ScanTooLargeError, match="1 files; this service reads up to 0") as caught:
        call("pipeline.io.formats.scan:leave_hounsfield", tmp_path, **arguments)
    assert caught.value.evidence == {"files": 1, "max_files": 0}


def test_nothing_is_left_running(tmp_path: Path) -> None:
    before = children_of_this_process()
    call("os:getpid", tmp_path)
    assert children_of_this_process() <= before


def children_of_this_process() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}
