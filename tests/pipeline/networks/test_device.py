"""Where the networks run, and how precisely."""

import pytest
import torch

from pipeline.networks.device import choose_device, mixed_precision


def test_a_device_that_is_not_there_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match="abacus"):
        choose_device("abacus")


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
    ids=["matrix units", "instructions", "neither"],
)
def test_the_cpu_computes_in_bfloat16_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    layer = torch.nn.Linear(4, 4)
    with mixed_precision(torch.device("cpu")):
        answer = layer(torch.ones(1, 4))
    assert answer.dtype == dtype


def test_whoever_does_not_want_it_gets_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    with mixed_precision(torch.device("cpu"), wanted=False):
        assert torch.nn.Linear(4, 4)(torch.ones(1, 4)).dtype == torch.float32
