import os

import pytest
import torch

from training.common.errors import UserError
from training.common.option_texts import Source
from training.common.options import Options
from training.run.arguments import OneCardArguments, check_options, training_arguments


def test_a_process_that_sees_several_cards_uses_one(tmp_path) -> None:
    args = training_arguments(Options(local_output_dir=tmp_path), None, evaluates=False)
    assert isinstance(args, OneCardArguments)
    args._n_gpu = 4  # as on a box with four cards and no launcher
    assert args.n_gpu == 1
    assert args.train_batch_size == args.per_device_train_batch_size == 8
    args._n_gpu = 0
    assert args.n_gpu == 0


def test_several_cards_are_said(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    training_arguments(Options(local_output_dir=tmp_path, bf16=False), None, evaluates=False)
    assert "one process uses one of the 4 cards; for all: deepspeed --module" in capsys.readouterr().out


def test_accelerates_own_deepspeed_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for options in (Options(), Options(deepspeed="config/deepspeed_zero2_bf16.json")):
        with pytest.raises(UserError, match="take distributed_type MULTI_GPU"):
            check_options(options)


@pytest.mark.parametrize("name", ["data_path", "eval_data_path"])
def test_a_plan_of_several_ranks_reads_no_pipe(tmp_path, monkeypatch, name: str) -> None:
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = Options(plan=True, **{name: (Source(pipe) if name == "data_path" else pipe,)})
    with pytest.raises(UserError, match=f"^{pipe}: a pipe, which --plan reads in one process only"):
        check_options(options)


def test_clipping_decay_and_adams_settings_reach_transformers(tmp_path) -> None:
    options = Options(local_output_dir=tmp_path, weight_decay=0.1, max_grad_norm=0.5)
    args = training_arguments(options, None, evaluates=False)
    assert (args.weight_decay, args.max_grad_norm, args.adam_beta2) == (0.1, 0.5, 0.999)
