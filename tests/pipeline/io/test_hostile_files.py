"""Files that mean harm end in words, soon and in little memory; those of them that do no harm are read.

`make test-hostile` sends the same files through a whole service.
"""

import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.errors import ApiError
from api.request_body import HEAD_BYTES, require_scan
from pipeline.errors import DamagedFileError, PipelineError, ScanTooLargeError, UnsupportedFormatError
from pipeline.io.formats.limits import SizeLimits
from pipeline.io.formats.scan import _read as read
from pipeline.io.read import ReadLimits, read_ct, read_volume
from tests.fuzz.targets import require_fit
from tests.support.hostile import build
from tests.support.hostile.cases import CANARY, CASES, READ, Case, deflated

#: As a worker has them.
LIMITS = SizeLimits(ReadLimits.max_voxels, ReadLimits.max_bytes, ReadLimits.max_files)
#: Types are checked at every call here, which takes most of it; `make test-hostile` holds 10 seconds.
LONGEST_SECONDS = 60
#: Where types are checked at every call, half a million elements take half a minute: these are read in the child.
HERE = [case for case in CASES if "empty elements" not in case.name or "1000" in case.name]
#: What all files together may add to the memory of this process.
MOST_MIB = 700


@pytest.fixture(scope="module", autouse=True)
def memory_stays_bounded() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MIB << 10


def test_there_are_enough_of_them() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 150


@pytest.mark.filterwarnings("ignore")  # pydicom says what it doubts
@pytest.mark.parametrize("case", HERE, ids=[case.name for case in HERE])
def test_a_file_that_means_harm(case: Case, tmp_path: Path) -> None:
    (work := tmp_path / "work").mkdir()
    content = case.make()
    try:
        require_scan(content[:HEAD_BYTES])
        status = 202
    except ApiError as error:
        status = error.problem.status or 0
    assert status == case.status
    (tmp_path / "scan").write_bytes(content)
    began = time.process_time()
    told: object
    try:
        scan = read(tmp_path / "scan", work, LIMITS)
        problem, told = READ, [(f.code, f.message, f.evidence) for f in scan.findings]
    except PipelineError as error:
        problem, told = error.code, {"detail": error.detail, "evidence": error.evidence}
    assert problem == case.problem, told
    assert time.process_time() - began < LONGEST_SECONDS
    require_fit(told)
    assert "ENAJ" not in str(told)
    assert CANARY not in str(told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan", "work"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dicom 600,000 empty elements", ScanTooLargeError),
        ("dicom 60,000 empty elements in each of ten files", ScanTooLargeError),
        ("zip overlapping entries that quote each other", DamagedFileError),
        ("gzip bomb of the announced size", ScanTooLargeError),
        ("dicom deflated bomb", UnsupportedFormatError),
        ("dicom JPEG 2000 of 60000 x 60000", DamagedFileError),
    ],
)
def test_bombs_in_the_readers_child(name: str, kind: type[PipelineError], tmp_path: Path) -> None:
    (tmp_path / "scan").write_bytes(next(case for case in CASES if case.name == name).make())
    with pytest.raises(kind):
        read_ct(tmp_path / "scan", ReadLimits(memory_bytes=2 << 30))


def test_a_mask_may_be_packed_as_no_ct_is(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "gzip bomb of the announced size")
    (tmp_path / "mask").write_bytes(case.make())
    assert not read_volume(tmp_path / "mask").volume.hu.any()


def test_a_deflated_file_beside_a_series_is_left_out_with_a_word(tmp_path: Path) -> None:
    (work := tmp_path / "work").mkdir()
    (tmp_path / "scan").write_bytes(build.zipped({**build.series(), "report": deflated(zeros=1 << 24)}))
    scan = read(tmp_path / "scan", work, LIMITS)
    assert [(f.code, f.evidence) for f in scan.findings][:1] == [("images-left-out", {"files": 1})]
