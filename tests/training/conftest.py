"""A dataset for each of the three trainings; a test may change the one that it gets."""

from pathlib import Path

import pytest

from tests.support.tiny_trainings import write_landmark_dataset, write_lesion_dataset, write_lung_dataset


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def landmark_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_landmark_dataset(tmp_path_factory.mktemp("landmarks"))


@pytest.fixture
def lung_dataset(dataset_folder: Path) -> Path:
    return write_lung_dataset(dataset_folder)


@pytest.fixture
def lesion_dataset(dataset_folder: Path) -> Path:
    return write_lesion_dataset(dataset_folder)
