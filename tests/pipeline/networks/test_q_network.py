import numpy as np
import pytest
import torch

from pipeline.anatomy import Landmark
from pipeline.networks.q_network import STEPS_ZYX, LandmarkConfig, LandmarkNetwork, QNetwork, agents_module
from pipeline.networks.weights import WeightsError, load_weights, save_weights

CONFIG = LandmarkConfig(scales_mm=(12.0, 6.0), box=9, widths=(2, 3, 4), hidden=8)


def saved(folder, config=CONFIG, tensors_of=CONFIG):
    agents = {mark: [QNetwork(tensors_of) for _ in tensors_of.scales_mm] for mark in Landmark}
    state = agents_module(agents).state_dict()
    save_weights(folder / "landmarks.safetensors", version="1", config=config.to_mapping(), recipe={}, tensors=state)
    return agents


def test_the_steps_are_the_six_unit_steps():
    assert len({tuple(step) for step in STEPS_ZYX.tolist()}) == 6
    assert (np.abs(STEPS_ZYX).sum(axis=1) == 1).all()


@pytest.mark.parametrize("box", [9, 15, 17])
def test_every_box_gets_six_values(box):
    network = QNetwork(LandmarkConfig(box=box, widths=(2, 3, 4), hidden=8))
    assert network(torch.zeros((5, box, box, box), dtype=torch.uint8)).shape == (5, 6)


def test_the_config_survives_json_lists():
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in CONFIG.to_mapping().items()}
    assert LandmarkConfig.from_mapping(values) == CONFIG


def test_loaded_agents_value_steps_as_the_saved_ones_did(tmp_path):
    torch.manual_seed(0)
    agents = saved(tmp_path)
    network = LandmarkNetwork.load(load_weights("landmarks", tmp_path), torch.device("cpu"))
    boxes = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 9), dtype=np.uint8)
    for mark in Landmark:
        for level in range(2):
            with torch.inference_mode():
                expected = agents[mark][level](torch.from_numpy(boxes)).numpy()
            assert np.array_equal(network.q_values(mark, level, boxes), expected)
    assert network.landmarks == tuple(Landmark)
    assert network.info.version == "1"


def test_weights_of_another_shape_are_refused(tmp_path):
    saved(tmp_path, tensors_of=LandmarkConfig(scales_mm=(12.0, 6.0), box=9, widths=(2, 3, 5), hidden=8))
    with pytest.raises(WeightsError, match="do not fit"):
        LandmarkNetwork.load(load_weights("landmarks", tmp_path), torch.device("cpu"))
