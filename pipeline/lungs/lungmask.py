"""Lungs and lobes by lungmask (Hofmanninger et al. 2020) in place of ours: the extra `lungmask`.

The lobes are those of its network LTRCLobes; where its network R231 sees lung that has no lobe, the nearest lobe gets
it. It looks at every slice of the scan and needs no landmark. Its lobes are numbered as ours.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import torch

from pipeline.anatomy import Lobe
from pipeline.geometry import LobeLabels, Volume, to_sitk
from pipeline.lungs.placement import COARSE_MM, require_lung_tissue
from pipeline.lungs.segment import Landmarks, Progress, require_lungs
from pipeline.networks.weights import ModelInfo, WeightsError, sha256_of
from pipeline.resampling import resample, resample_labels

try:
    from lungmask.mask import MODEL_URLS, LMInferer
except ImportError as error:
    raise WeightsError("the lung stage `lungmask` needs its extra: pip install 'lobewise[lungmask]'") from error

LOBES: Final = "LTRCLobes"
FILL: Final = "R231"
SLICES_AT_ONCE: Final = 8


@dataclass(frozen=True, eq=False)
class LungmaskBackend:
    """lungmask's two networks, ready on a device."""

    inferer: Any
    infos: tuple[ModelInfo, ...]

    @classmethod
    def load(cls, device: torch.device, weights_dir: Path | None = None) -> "LungmaskBackend":
        """Load its weights from `weights_dir`, by the names that lungmask publishes them under, or else download them.

        Raises:
            WeightsError: they cannot be had, or a file is not what its name says.
        """
        paths = {name: weights_file(name, weights_dir) for name in (LOBES, FILL)}
        try:
            inferer = LMInferer(
                modelname=LOBES,
                modelpath=str(paths[LOBES]),
                fillmodel=FILL,
                fillmodel_path=str(paths[FILL]),
                force_cpu=True,
                batch_size=SLICES_AT_ONCE,
                tqdm_disable=True,
            )
        except RuntimeError as error:
            raise WeightsError(f"lungmask cannot use its weights: {error}") from error
        inferer.device = device
        for network in (inferer.model, inferer.fillmodelm):
            network.to(device)
        return cls(
            inferer,
            tuple(
                ModelInfo(f"lungmask-{name.lower()}", version("lungmask"), sha256_of(path))
                for name, path in paths.items()
            ),
        )

    def segment(self, volume: Volume, landmarks: Landmarks, progress: Progress) -> LobeLabels:
        """The lobes; `landmarks` do not place them. It cannot tell how far it is before it is done.

        Raises:
            NotChestCTError: there is no landmark, and what it found is no lung tissue.
            LungsNotFoundError: what it found is too small to be lungs.
        """
        labels = np.asarray(self.inferer.apply(to_sitk(volume.hu, volume.grid)), dtype=np.uint8)
        labels = np.where(labels <= max(Lobe), labels, 0).astype(np.uint8)
        if not any(landmark.found for landmark in landmarks.values()):
            coarse = volume.grid.covering((COARSE_MM,) * 3)
            on_coarse = resample_labels(labels, volume.grid, coarse)
            require_lung_tissue(resample(volume.hu, volume.grid, coarse), on_coarse, COARSE_MM)
        require_lungs(labels, volume.grid.voxel_volume_ml, volume.grid)
        progress(1.0)
        return LobeLabels(labels, volume.grid)


def weights_file(name: str, folder: Path | None = None) -> Path:
    """The weights of lungmask's network `name`, checked against the digest in their file name.

    Raises:
        WeightsError: they are not in `folder` and cannot be downloaded, or have another digest.
    """
    address = MODEL_URLS[name][0]
    file_name = Path(urlsplit(address).path).name
    path = (folder or Path(torch.hub.get_dir())) / file_name
    if not path.is_file():
        path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(address, str(path), progress=False)
            except OSError as error:
                message = f"lungmask's weights could not be downloaded: put {path.name} into the folder of the weights"
                raise WeightsError(message) from error
    begins = path.stem.rsplit("-", 1)[1]
    if not sha256_of(path).startswith(begins):
        raise WeightsError(
            f"{path.name} is damaged: its sha256 does not begin with {begins}; delete it and start again"
        )
    return path
