"""Where the networks run, and how precisely."""

import pytest
import torch

from lobewise.pipeline.networks.device import choose_device, mixed_precision


def test_a_device_that_is_not_there_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match="abacus"):
        choose_device("abacus")


@pytest.mark.parametrize("has_matrix_units", [True, False])
def test_the_cpu_computes_in_bfloat16_only_with_matrix_units(
    monkeypatch: pytest.MonkeyPatch, has_matrix_units: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_matrix_units})
    layer = torch.nn.Linear(4, 4)
    with mixed_precision(torch.device("cpu")):
        answer = layer(torch.ones(1, 4))
    assert answer.dtype == (torch.bfloat16 if has_matrix_units else torch.float32)
