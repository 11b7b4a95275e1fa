"""Masks say in their own header what their numbers stand for, and stay what every reader opens."""

import gzip
import struct
from pathlib import Path
from xml.etree import ElementTree

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.testing import assert_allclose, assert_array_equal

from pipeline.anatomy import Lobe
from pipeline.geometry import LobeLabels
from pipeline.io.read import read_ct
from pipeline.io.write import write_mask
from pipeline.labels import LABELS
from worker.report import mask_labels


def test_readers_see_the_same_voxels_with_labels_as_without(lobes: LobeLabels, tmp_path: Path) -> None:
    plain, labelled = tmp_path / "plain.nii.gz", tmp_path / "labelled.nii.gz"
    write_mask(plain, lobes.labels, lobes.grid)
    write_mask(labelled, lobes.labels, lobes.grid, labels=LABELS["lobes"])

    bare, full = gzip.decompress(plain.read_bytes()), gzip.decompress(labelled.read_bytes())
    begin = int(struct.unpack_from("<f", full, 108)[0])
    assert begin % 16 == 0
    assert full[begin:] == bare[352:]
    by_nibabel = nibabel.load(labelled)
    assert_array_equal(np.asarray(by_nibabel.dataobj).T, lobes.labels)
    assert_allclose(by_nibabel.affine, nibabel.load(plain).affine)
    by_itk, plain_by_itk = sitk.ReadImage(str(labelled)), sitk.ReadImage(str(plain))
    assert_array_equal(sitk.GetArrayFromImage(by_itk), lobes.labels)
    assert by_itk.GetDirection() == plain_by_itk.GetDirection()
    assert by_itk.GetOrigin() == plain_by_itk.GetOrigin()
    assert_array_equal(read_ct(labelled).volume.hu, read_ct(plain).volume.hu)


def test_the_header_has_names_and_colours(lobes: LobeLabels, tmp_path: Path) -> None:
    write_mask(tmp_path / "lobes.nii.gz", lobes.labels, lobes.grid, labels=LABELS["lobes"])
    (extension,) = nibabel.load(tmp_path / "lobes.nii.gz").header.extensions
    assert extension.get_code() == 30
    root = ElementTree.fromstring(extension.content.rstrip(b"\0"))  # noqa: S314 (our own)
    shown = {int(label.attrib["Key"]): label for label in root.findall("VolumeInformation/LabelTable/Label")}
    assert {number: label.text for number, label in shown.items()} == {lobe.value: lobe.slug for lobe in Lobe}
    middle = shown[Lobe.RIGHT_MIDDLE].attrib
    assert [round(float(middle[part]) * 255) for part in ("Red", "Green", "Blue")] == [240, 228, 66]
    assert root.findtext("VolumeInformation/VolumeType") == "Label"


def test_the_same_mask_gives_the_same_bytes_with_labels_too(lobes: LobeLabels, tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_mask(tmp_path / name, lobes.labels, lobes.grid, labels=LABELS["lobes"])
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_every_mask_has_labels_and_no_number_or_name_twice() -> None:
    for labels in mask_labels().masks.values():
        assert labels
        assert len({label.number for label in labels}) == len({label.name for label in labels}) == len(labels)
