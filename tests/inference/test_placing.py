import pytest
import torch
from transformers import AutoModelForCausalLM

from inference import placing
from inference.placing import auto_placing, weight_bytes


def test_the_bytes_of_the_weights_are_those_of_the_model(tuned: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32)
    count = model.num_parameters()
    assert weight_bytes(tuned, "float32", None) == 4 * count
    assert weight_bytes(tuned, "bfloat16", None) == 2 * count
    saved = AutoModelForCausalLM.from_pretrained(tuned).dtype
    assert weight_bytes(tuned, "auto", None) == saved.itemsize * count
    quantized = sum(w.numel() for name, w in model.named_parameters() if ".h." in name and w.dim() == 2)
    assert weight_bytes(tuned, torch.bfloat16, 8) == 2 * (count - quantized) + quantized
    assert weight_bytes(tuned, torch.bfloat16, 4) == 2 * (count - quantized) + quantized // 2


def test_auto_takes_one_card_where_the_model_fits_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert auto_placing("model", "auto", None) == "auto"  # there is no card here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: [(10, 24), (20, 24)][card])
    monkeypatch.setattr(placing, "weight_bytes", lambda path, dtype, bits: 16)
    assert auto_placing("model", "auto", None) == {"": "cuda:1"}
    monkeypatch.setattr(placing, "weight_bytes", lambda path, dtype, bits: 17)
    assert auto_placing("model", "auto", None) == "auto"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert auto_placing("model", "auto", None) == "auto"
