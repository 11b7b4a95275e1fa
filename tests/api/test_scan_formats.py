"""The gateway's look at the first bytes agrees with the reader's, which it may not import."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import ApiError
from api.request_body import HEAD_BYTES, require_scan
from pipeline.io.formats.content import Content, identify

from .conftest import nifti

NIFTI_2 = (b"\x1c\x02\0\0n+2\0\r\n\x1a\n").ljust(600, b"\0")
PAIR = nifti()[:344] + b"ni1\0" + bytes(200)


def is_taken(head: bytes) -> bool:
    try:
        require_scan(head[:HEAD_BYTES])
    except ApiError:
        return False
    return True


@pytest.mark.parametrize(
    ("head", "content"),
    [
        (nifti(), Content.NIFTI),
        (NIFTI_2, Content.NIFTI),
        (gzip.compress(nifti(), mtime=0), Content.NIFTI_GZ),
        (b"NRRD0005\ntype: short\n", Content.NRRD),
        (b"ObjectType = Image\nNDims = 3\n", Content.METAIMAGE),
        (b"PK\x03\x04", Content.ZIP),
    ],
)
def test_what_the_reader_reads_is_taken(head: bytes, content: Content) -> None:
    assert identify(head) is content
    assert is_taken(head)


@pytest.mark.parametrize(
    ("head", "content"),
    [
        (PAIR, Content.NIFTI_PAIR),
        (bytes(128) + b"DICM", Content.DICOM),
        (b"%PDF-1.7", Content.OTHER),
        (b"", Content.OTHER),
    ],
)
def test_what_the_reader_refuses_by_its_beginning_is_not_taken(head: bytes, content: Content) -> None:
    assert identify(head) is content
    assert not is_taken(head)


@given(st.binary(max_size=600), st.sampled_from([b"", b"NRRD", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"NDims="]))
def test_nothing_that_could_be_read_is_turned_away(rest: bytes, beginning: bytes) -> None:
    content = identify(beginning + rest)
    if content.is_image or content is Content.ZIP:
        assert is_taken(beginning + rest)
