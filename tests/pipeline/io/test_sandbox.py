"""A child that crashes, dawdles, takes too much or answers: each ends in words, never in a hang."""

import logging
import time
from pathlib import Path

import pytest

from pipeline.errors import DamagedFileError, PipelineError, ScanTooLargeError
from pipeline.io.sandbox import Confinement, ReaderKilledError, call_confined
from worker.task import is_out_of_memory

ROOMY = Confinement(memory_bytes=4 << 30, file_bytes=1 << 20, seconds=60.0)
SHELL = "subprocess:getoutput"  # inherits the child's limits


def call(function: str, folder: Path, limits: Confinement = ROOMY, **arguments: object) -> object:
    return call_confined(function, arguments, folder, limits)


def test_the_answer_comes_back(tmp_path: Path) -> None:
    assert call("json:loads", tmp_path, s='{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}


def test_the_child_sees_nothing_of_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    seen = call(SHELL, tmp_path, cmd="env")
    assert isinstance(seen, str)
    assert "hidden" not in seen
    assert f"TMPDIR={tmp_path}" in seen


def test_its_working_folder_is_the_one_given(tmp_path: Path) -> None:
    assert call("os:getcwd", tmp_path) == str(tmp_path)


@pytest.mark.parametrize(("flag", "amount"), [("v", (4 << 30) // 1024), ("f", None), ("t", 70), ("n", 256), ("c", 0)])
def test_limits_are_hard(flag: str, amount: int | None, tmp_path: Path) -> None:
    hard = call(SHELL, tmp_path, cmd=f"ulimit -H -{flag}")
    assert isinstance(hard, str)
    assert hard.isdigit()
    assert amount is None or int(hard) == amount


def test_a_file_ends_at_its_limit(tmp_path: Path) -> None:
    call(SHELL, tmp_path, cmd="head -c 3000000 /dev/zero > big")
    assert (tmp_path / "big").stat().st_size == 1 << 20


def test_memory_ends_at_its_limit(tmp_path: Path) -> None:
    with pytest.raises(ScanTooLargeError, match="more memory"):
        call("numpy:ones", tmp_path, shape=10**10)


@pytest.mark.parametrize("name", ["KILL", "TERM", "HUP", "INT"])
def test_a_child_that_somebody_else_ends_is_no_fault_of_the_file(name: str, tmp_path: Path) -> None:
    """As the kernel does when the machine is out of memory: the worker tries again, then says `out-of-memory`."""
    with pytest.raises(ReaderKilledError, match=f"ended by SIG{name} from outside") as caught:
        call(SHELL, tmp_path, cmd=f"kill -{name} $PPID; sleep 5")
    assert not isinstance(caught.value, PipelineError)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("name", ["SEGV", "ABRT", "XCPU", "BUS", "FPE", "ILL"])
def test_a_child_that_breaks_on_what_it_reads_is_never_tried_again(name: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=f"ended by SIG{name}") as caught:
        call(SHELL, tmp_path, cmd=f"kill -{name} $PPID; sleep 5")
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
        call(SHELL, tmp_path, hurried, cmd="echo $$ > pid; exec sleep 600")
    pid = int((tmp_path / "pid").read_text())
    while is_alive(pid):  # the test's own limit ends this
        time.sleep(0.05)


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
