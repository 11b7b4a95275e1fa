"""Another network for lungs and lobes behind the same type: lungmask's own architecture with random weights."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.anatomy import Landmark, Lobe
from pipeline.errors import LungsNotFoundError
from pipeline.geometry import Grid, LandmarkPosition, LobeLabels, Matrix, Scan, Volume
from pipeline.lungs import lungmask
from pipeline.lungs.backend import Di2inBackend, load_lung_backend
from pipeline.lungs.lungmask import FILL, LOBES, LungmaskBackend, weights_file
from pipeline.lungs.segment import Landmarks, Progress
from pipeline.networks.weights import ModelInfo, WeightsError
from pipeline.phantom import PhantomRecipe, make_phantom
from pipeline.quantify import ignore, load_models, quantify

CPU = torch.device("cpu")
GRID = Grid((2, 72, 80), (60.0, 4.0, 4.0), (0.0, 0.0, 0.0))
FEET_FIRST: Matrix = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both networks' random weights, named by their digests as lungmask names its own."""
    from lungmask.resunet import UNet

    folder = tmp_path_factory.mktemp("lungmask")
    for name, classes in ((LOBES, 1 + len(Lobe)), (FILL, 3)):
        torch.manual_seed(classes)
        network = UNet(n_classes=classes, padding=True, depth=5, up_mode="upsample", batch_norm=True)
        with torch.no_grad():
            network.last.bias[0] -= 10.0  # random weights see no lung anywhere; these see nothing else
        path = folder / f"{name}.pth"
        torch.save(network.state_dict(), path)
        path.rename(folder / f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")
    return folder


@pytest.fixture(scope="module")
def published(weights: Path) -> Iterator[Path]:
    """The folder, its files known as what lungmask publishes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, classes in ((LOBES, 6), (FILL, 3)):
            (path,) = weights.glob(f"{name}-*.pth")
            patch.setitem(lungmask.MODEL_URLS, name, (f"https://lungmask.example/{path.name}", classes))
        yield weights


@pytest.fixture(scope="module")
def stage(published: Path) -> LungmaskBackend:
    loaded = load_lung_backend("lungmask", CPU, published)
    assert isinstance(loaded, LungmaskBackend)
    return loaded


def chest(grid: Grid = GRID) -> Volume:
    rng = np.random.default_rng(0)
    hu = np.full(grid.shape, -1000, dtype=np.int16)
    hu[:, 8:-8, 8:-8] = 40
    hu[:, 16:-16, 14:36], hu[:, 16:-16, 44:-14] = -850, -850
    return Volume((hu + rng.normal(0, 20, grid.shape)).astype(np.int16), grid)


def test_lungmask_answers_as_it_does_by_itself_and_names_its_weights(stage: LungmaskBackend, published: Path) -> None:
    volume, shares = chest(), []
    found = stage.segment(volume, {}, shares.append)
    assert found.grid == volume.grid
    assert np.array_equal(found.labels, stage.inferer.apply(volume.hu))
    assert set(np.unique(found.labels)) <= {0, *Lobe}
    assert found.labels.any()
    assert shares == [1.0]
    assert [info.name for info in stage.infos] == ["lungmask-ltrclobes", "lungmask-r231"]
    assert [info.sha256[:8] for info in stage.infos] == [
        next(published.glob(f"{name}-*.pth")).stem.rsplit("-", 1)[1] for name in (LOBES, FILL)
    ]


def test_a_scan_that_lies_another_way_has_the_same_labels_at_the_same_places(stage: LungmaskBackend) -> None:
    upright = chest()
    turned = Volume(
        np.ascontiguousarray(upright.hu[::-1, ::-1]), Grid(GRID.shape, GRID.spacing_mm, (0.0, 284.0, 60.0), FEET_FIRST)
    )
    labels = stage.segment(upright, {}, lambda _done: None).labels
    assert np.array_equal(stage.segment(turned, {}, lambda _done: None).labels, labels[::-1, ::-1])


def test_what_is_too_small_to_be_lungs_is_refused(stage: LungmaskBackend) -> None:
    tiny = replace(chest(), grid=Grid(GRID.shape, (1.0, 0.5, 0.5), GRID.origin_mm))
    seen = LandmarkPosition(Landmark.CARINA, (0.0, 0.0, 0.0), 1.0)
    with pytest.raises(LungsNotFoundError):
        stage.segment(tiny, {Landmark.CARINA: seen}, lambda _done: None)


def test_damaged_weights_are_refused(published: Path, tmp_path: Path) -> None:
    (path,) = published.glob(f"{FILL}-*.pth")
    (tmp_path / path.name).write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="damaged"):
        weights_file(FILL, tmp_path)


def test_weights_that_cannot_be_had_say_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    address = "http://127.0.0.1:9/unet-00000000.pth"
    monkeypatch.setitem(lungmask.MODEL_URLS, FILL, (address, 3))
    with pytest.raises(WeightsError, match=r"put unet-00000000\.pth into the folder of the weights"):
        weights_file(FILL, tmp_path)


def test_ours_is_the_default() -> None:
    assert isinstance(load_models("cpu").lungs, Di2inBackend)


def test_whatever_draws_the_lungs_is_scored_and_named() -> None:
    phantom = make_phantom(PhantomRecipe(seed=3, spacing_mm=(6.0, 3.0, 3.0)))
    info = ModelInfo("oracle", "1", "0" * 64)

    class Oracle:
        infos = (info,)

        def segment(self, volume: Volume, landmarks: Landmarks, progress: Progress) -> LobeLabels:
            assert np.array_equal(volume.hu, phantom.volume.hu)
            assert landmarks
            progress(1.0)
            return LobeLabels(phantom.lobes.labels, volume.grid)

    models = replace(load_models("cpu"), lungs=Oracle())
    found = quantify(Scan(phantom.volume), models, ignore)
    assert np.array_equal(found.lobes.labels, phantom.lobes.labels)
    assert [model.name for model in found.models] == ["landmarks", "oracle", "lesions"]
