"""`lobewise phantom`: a CT whose truth is known, as files."""

from itertools import permutations, product
from pathlib import Path
from typing import Final, get_args

from cli.output import bar, needs, write_document
from jobs.models import LandmarkPoint, MaskName, Provenance, Report
from jobs.version import __version__

with needs("worker"):
    import numpy as np

    from pipeline.anatomy import Landmark
    from pipeline.geometry import Matrix, Triple
    from pipeline.io.write import write_ct, write_mask
    from pipeline.labels import LABELS
    from pipeline.phantom import Phantom, PhantomRecipe, make_phantom
    from pipeline.phantom.recipe import Fit
    from pipeline.severity import high_opacity_of
    from worker.report import lobe_of, scores_of, volumes_of

LPS_AXES: Final = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}

#: All 48, such as LPS or AIR.
ORIENTATIONS: Final = tuple("".join(letters) for axes in permutations(("LR", "PA", "SI")) for letters in product(*axes))


def direction_of(orientation: str) -> Matrix:
    """The direction matrix of an array whose x, y and z axis lead where the three letters say.

    Raises:
        ValueError: not one each of L/R, P/A and S/I.
    """
    letters = orientation.upper()
    if letters not in ORIENTATIONS:
        raise ValueError(f"{orientation!r} is no orientation: give one each of L/R, P/A and S/I, such as LPS or AIR")
    columns = np.array([LPS_AXES[letter] for letter in letters], dtype=np.float64)
    rows = [(float(x), float(y), float(z)) for x, y, z in columns.T]
    return rows[0], rows[1], rows[2]


def recipe_of(*, seed: int, spacing_mm: Triple, direction: Matrix, fit: str, opacity: float | None) -> PhantomRecipe:
    """Raises: ValueError: values that no phantom can have."""
    known: dict[str, Fit] = {name: name for name in get_args(Fit)}
    if fit not in known:
        raise ValueError(f"{fit!r} is nothing that a phantom covers: {', '.join(known)}")
    if not all(0.3 <= mm <= 20 for mm in spacing_mm):
        raise ValueError("voxels are 0.3 to 20 mm long")
    if opacity is not None and not 0 <= opacity <= 90:
        raise ValueError("0 to 90 percent of the lungs can be opaque")
    return PhantomRecipe(seed=seed, spacing_mm=spacing_mm, direction=direction, fit=known[fit], percent_opacity=opacity)


def save_phantom(recipe: PhantomRecipe, folder: Path) -> tuple[Report, list[Path]]:
    """Make a phantom and write `ct.nii.gz`, its true masks and `truth.json` to `folder`, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    with bar("making a phantom whose scores are known") as shown:
        phantom = make_phantom(recipe)
        shown.show("writing the phantom", 0.8)
        masks = {
            MaskName.LUNGS: phantom.lobes.lungs().mask,
            MaskName.LOBES: phantom.lobes.labels,
            MaskName.LESIONS: phantom.lesions.mask,
            MaskName.HIGH_OPACITY: high_opacity_of(phantom.volume, phantom.lesions.mask),
        }
        paths = [folder / "ct.nii.gz"]
        write_ct(paths[0], phantom.volume)
        for name, mask in masks.items():
            paths.append(folder / f"{name.value}.nii.gz")
            write_mask(paths[-1], mask, phantom.volume.grid, labels=LABELS[name])
        shown.show("made a phantom whose scores are known", 1.0)
    truth = truth_of(phantom)
    return truth, [*paths, write_document(truth, folder / "truth.json")]


def truth_of(phantom: Phantom) -> Report:
    """What a perfect report of the phantom would say."""
    points = {mark.value: phantom.landmarks.get(mark) for mark in Landmark}
    return Report(
        job_id="truth",
        severity=scores_of(phantom.severity),
        lungs=volumes_of(phantom.severity),
        lobes=[lobe_of(lobe) for lobe in phantom.severity.lobes],
        landmarks=[
            LandmarkPoint.model_validate({"name": name, "found": point is not None, "position_mm": point})
            for name, point in points.items()
        ],
        quality=[],
        provenance=Provenance(input_sha256="0" * 64, software=__version__, models=[], device="phantom", seconds={}),
    )
