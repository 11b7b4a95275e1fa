"""DICOM: a CT series from whatever files hold it, on a regular grid, with what is wrong with it.

Slices are ordered by their position along their normal, never by number or name. `dicom_inventory` says what the files
hold, `dicom_headers` what each slice is, `dicom_stacks` which of them make a volume, `dicom_grid` where it lies, and
`dicom_pixels` what its values are.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from pipeline.errors import PipelineError
from pipeline.geometry import Finding, Scan, Volume, as_evidence
from pipeline.io.formats.archive import Member
from pipeline.io.formats.dicom_grid import grid_of_stack, interpolate
from pipeline.io.formats.dicom_headers import Slice
from pipeline.io.formats.dicom_identity import identity_of
from pipeline.io.formats.dicom_inventory import Inventory, take_stock
from pipeline.io.formats.dicom_pixels import check_pixels, decoded_frames, hounsfield, pixel_digest, rescale_of
from pipeline.io.formats.dicom_stacks import Stack, choose, one_patient, stacks_of, without_repeats
from pipeline.io.formats.limits import SizeLimits


def read_series(members: Iterable[Member], folder: Path, limits: SizeLimits) -> Scan:
    """The CT volume to score among `members`, which are copied to `folder` as far as needed.

    Raises:
        NotChestCTError: images, but of another modality.
        UnsupportedFormatError: no stack of CT slices, or several that nothing tells apart.
        DamagedFileError: a slice's header or pixels cannot be read.
    """
    stock, noticed = Inventory(), list[Finding]()
    try:
        take_stock(members, folder, limits, stock)
        return _read(stock, limits, noticed)
    except PipelineError as error:
        counted = {key: value for key, value in stock.counted().items() if key not in error.evidence}
        error.evidence.update(counted)
        if noticed:
            error.evidence["findings"] = as_evidence(noticed)
        raise


def _read(stock: Inventory, limits: SizeLimits, noticed: list[Finding]) -> Scan:
    """`noticed` is filled on the way, for whoever has to say why it ended."""

    digests: dict[int, bytes] = {}

    def digest(s: Slice) -> bytes:
        limits.check_voxels((*s.shape[::-1], 1))
        if id(s) not in digests:
            digests[id(s)] = pixel_digest(s)
        return digests[id(s)]

    if stock.localizers:
        message = f"{stock.localizers} localizer images were left out."
        noticed.append(Finding("localizer-dropped", "info", message, {"images": stock.localizers}))
    one_patient(stock.slices)
    stacks, set_aside = stacks_of(stock.slices, digest)
    noticed += set_aside
    if stock.left_out and all(len(stack.slices) < 2 for stack in stacks):
        raise stock.nothing_to_stack()
    chosen, others = choose(stacks)
    noticed += [*others, *_left_out(stock, chosen)]
    limits.check_voxels((*chosen.first.shape[::-1], len(chosen.slices)))
    # Where the slices lie is known before pixels are decoded, and refused where no CT lies like that.
    on = grid_of_stack(chosen, limits)
    noticed += without_repeats(chosen, digest)
    noticed += on.findings
    noticed += _header_findings(chosen.slices)
    for s in chosen.slices:
        rescale_of(s.rescale)
        check_pixels(s.pixels)
    planes, odd = _decode(chosen.slices)
    noticed += odd
    volume = Volume(interpolate(planes, on), on.grid)
    return Scan(volume, tuple(noticed), on.source, identity_of(chosen.slices, on))


def _left_out(stock: Inventory, chosen: Stack) -> tuple[Finding, ...]:
    """Images that are no CT slices with a place; a warning where they are of the series that is scored."""
    findings = []
    for reason, series in stock.left_out.items():
        own = series[chosen.first.series]
        message = f"{series.total()} CT images were left out: {reason}."
        evidence = {"images": series.total(), "of_the_scored_series": own}
        findings.append(Finding("images-left-out", "warning" if own else "info", message, evidence))
    if stock.unknown:
        message = (
            f"{stock.unknown} DICOM files were left out: without Rows, Columns and a known SOPClassUID (damaged?)."
        )
        findings.append(Finding("images-left-out", "warning", message, {"files": stock.unknown}))
    if stock.deflated:
        message = f"{stock.deflated} deflated DICOM files were left out, unopened: they may hold slices of the scan."
        findings.append(Finding("images-left-out", "warning", message, {"files": stock.deflated}))
    if stock.other_modalities:
        listed = dict(sorted(stock.other_modalities.items()))
        message = f"{sum(listed.values())} images of other modalities ({', '.join(listed)}) were left out."
        findings.append(Finding("images-left-out", "info", message, {"images": listed}))
    return tuple(findings)


def _header_findings(slices: Sequence[Slice]) -> tuple[Finding, ...]:
    findings = []
    lacking = sum(not (s.rescale.slope and s.rescale.intercept) for s in slices)
    if lacking:
        some = lacking < len(slices)
        message = (
            f"RescaleSlope or RescaleIntercept is missing in {lacking} of {len(slices)} slices: their stored values "
            "were taken for Hounsfield units."
        )
        evidence = {"slices": len(slices), "missing": lacking}
        findings.append(Finding("rescale-missing", "error" if some else "warning", message, evidence))
    if any(s.is_contrasted for s in slices):
        message = "The header says that contrast was given: vessels are brighter, high opacity may be overestimated."
        findings.append(Finding("intravenous-contrast", "info", message))
    if any(s.is_lossy for s in slices):
        findings.append(Finding("lossy-compression", "info", "The pixels have been compressed with loss."))
    return tuple(findings)


def _decode(slices: Sequence[Slice]) -> tuple[Int16[np.ndarray, "n y x"], tuple[Finding, ...]]:
    """The slices in Hounsfield units, and whether their bits were where the header says."""
    planes = np.empty((len(slices), *slices[0].shape), dtype=np.int16)
    files: dict[Path, dict[int, int]] = {}
    for index, s in enumerate(slices):
        files.setdefault(s.pixels.path, {})[s.frame] = index
    unused_bits, ignored = 0, 0
    for frames in files.values():
        pixels = slices[next(iter(frames.values()))].pixels
        for frame, decoded in decoded_frames(pixels, frames):
            planes[frames[frame]] = hounsfield(decoded, slices[frames[frame]].rescale)
            unused_bits += decoded.unused_bits
            ignored += decoded.high_bit_ignored
    if not (unused_bits or ignored):
        return planes, ()
    parts = []
    if unused_bits:
        parts.append(f"{unused_bits} pixels have bits set beyond BitsStored, which were ignored")
    if ignored:
        parts.append(f"HighBit does not fit to BitsStored in {ignored} slices, and was ignored")
    message = f"{'; '.join(parts)}."
    evidence = {"pixels": unused_bits, "slices_with_other_high_bit": ignored}
    return planes, (Finding("pixel-bits", "warning", message, evidence),)
