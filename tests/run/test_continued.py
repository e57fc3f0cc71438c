from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from training.common.errors import UserError
from training.run.continued import adopt_state, check_loaded_weights, say_jump


class Tied(nn.Module):
    """Two names for one weight, and one weight that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 2)
        self.head = nn.Linear(2, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.tensor([1.0009765625, 2.0]))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)


def trainer_of(model: nn.Module, **more: object) -> SimpleNamespace:
    return SimpleNamespace(
        model=model,
        is_world_process_zero=lambda: True,
        deepspeed=SimpleNamespace(optimizer=None),
        **more,
    )


@pytest.mark.parametrize("embedding_name", ["embedding.weight", "head.weight"])
def test_what_was_loaded_is_what_was_saved(tmp_path: Path, embedding_name: str) -> None:
    model = Tied()
    saved = {embedding_name: model.embedding.weight.data.bfloat16(), "scale": torch.tensor([1.0, 2.0])}
    saved["scale"] = saved["scale"].bfloat16()  # to which 1.0009765625 is rounded
    save_file(saved, tmp_path / "model.safetensors")
    check_loaded_weights(trainer_of(model), tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.update(scale=saved["scale"].flip(0)),
        lambda saved: saved.update(scale=torch.empty(0, dtype=torch.bfloat16)),
        lambda saved: saved.update(scale=torch.tensor([1.0, 2.015625]).bfloat16()),  # the next number of bf16
        lambda saved: saved.pop("scale"),
    ],
)
def test_another_weight_stops_the_run(tmp_path: Path, damage) -> None:
    model = Tied()
    saved = {"embedding.weight": model.embedding.weight.data, "scale": model.scale.data.bfloat16()}
    damage(saved)
    save_file(saved, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"did not get the weights.*\(the first that differs: scale\)"):
        check_loaded_weights(trainer_of(model), tmp_path)


def test_the_names_of_an_adapters_weights_are_those_that_peft_saves(tmp_path: Path) -> None:
    model = nn.ModuleDict({"lora_A": nn.ModuleDict({"default": nn.Linear(2, 2, bias=False)})})
    save_file(
        {"lora_A.weight": model["lora_A"]["default"].weight.data}, tmp_path / "adapter_model.safetensors"
    )
    check_loaded_weights(trainer_of(model), tmp_path)


@pytest.mark.parametrize(("batches", "said"), [(8, ""), (4, "at epoch 1.50, and is at epoch 3.00")])
def test_a_jump_of_the_epoch_is_said(capsys, batches: int, said: str) -> None:
    args = SimpleNamespace(gradient_accumulation_steps=2)
    trainer = SimpleNamespace(args=args, get_train_dataloader=lambda: range(batches))
    say_jump(trainer, SimpleNamespace(global_step=6, epoch=1.5))
    assert said in capsys.readouterr().out if said else capsys.readouterr().out == ""


def test_the_state_of_deepspeeds_adam_is_taken_by_torchs() -> None:
    """DeepSpeed's Adam counts its steps as an int, and has other settings beside the common ones."""

    def steps(weight: nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            weight.grad = weight.data * 0.1
            optimizer.step()

    whole, parts = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    optimizer = torch.optim.AdamW([whole])
    steps(whole, optimizer, 2)
    parts.data.copy_(whole.data)
    state = {name: value.clone() for name, value in optimizer.state[whole].items()}
    state["step"] = 2
    group = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
    group |= {"params": [0], "bias_correction": True}
    continued = torch.optim.AdamW([parts])
    continued.load_state_dict({"state": {0: state}, "param_groups": [group]})
    adopt_state(continued)
    steps(whole, optimizer, 2)
    steps(parts, continued, 2)
    assert torch.equal(whole, parts)
