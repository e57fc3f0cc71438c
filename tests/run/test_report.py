import json
import os
import platform
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT
from training.common.console import bytes_text, log_line
from training.run import machine, report
from training.run.machine import describe_machine, machine_text
from training.run.report import git_commit

ENTRY = {
    "loss": 2.34567, "grad_norm": 0.5, "learning_rate": 1e-5, "tokens_per_second": 1234.5,
    "learnt_tokens_per_second": 600.0, "padding_share": 0.25, "matrix_product_share": 0.71, "epoch": 0.5,
    "seconds_left": 3725.0,
}  # fmt: skip


def test_a_log_line_says_it_all() -> None:
    assert log_line(ENTRY) == (
        "loss 2.3457  gradient norm 0.5  rate 1e-05  1,234 tokens/s, 600 supervised, 25% padding  "
        "71% of the GEMM bound  epoch 0.50, 1:02:05 left"
    )
    unknown = dict(ENTRY)
    del unknown["matrix_product_share"], unknown["seconds_left"]
    assert log_line(unknown) == (
        "loss 2.3457  gradient norm 0.5  rate 1e-05  1,234 tokens/s, 600 supervised, 25% padding  epoch 0.50"
    )
    assert log_line({"train_runtime": 61.0}) == "trained for 0:01:01"
    evaluation = {"eval_loss": 1.5, "eval_tokens": 1200, "eval_ended_share": 0.75, "eval_length_share": 1.1,
                  "eval_repeated_share": 0.05}  # fmt: skip
    assert log_line(evaluation) == (
        "evaluation loss 1.5000 on 1,200 tokens; answers: 75% ended, 1.10 times as long as the data's, "
        "5% repeated"
    )
    of_file = {key.replace("eval_", "eval_my_test_"): value for key, value in evaluation.items()}
    assert log_line(of_file) == log_line(evaluation).replace("loss", "loss of my_test")
    assert (bytes_text(14.14e9), bytes_text(2.5e6)) == ("14.1 GB", "2.5 MB")


def test_the_report_of_a_run(tuned: str) -> None:
    report = json.loads((Path(tuned).parent / "report.json").read_text())
    assert report["command"].startswith("python -m training.trainer")
    assert report["model"] == str(Path(tuned).parent)
    assert report["git_commit"] == git_commit()
    assert report["steps"] == 120
    assert [entry["step"] for entry in report["history"] if "loss" in entry] == [40, 80, 120]
    assert report["last_loss"] == report["history"][-2]["loss"] < report["first_loss"]
    assert report["best_evaluation"] is None
    [(path, found)] = report["data"].items()
    assert path.endswith("learnt.jsonl")
    assert found["kept"]["rows"] == 4
    assert report["run"]["seed"] == 515
    machine = report["run"]["machine"]
    assert (machine["host"], machine["card"], machine["ranks"]) == (platform.node(), None, 1)
    assert machine["attention"].startswith("ours, packed")
    assert report["run"]["gradient sums"] == "fp32"
    page = (Path(tuned).parent / "report.md").read_text()
    assert f"{report['last_loss']:.4f}" in page
    assert "4 rows of" in page
    assert f"| machine | {platform.node()}, " in page
    assert "| evaluation | none |" in page
    assert "evaluation loss" not in page
    assert (Path(tuned).parent / "loss.png").exists()


def test_the_commit_is_gits_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert git_commit().rstrip("+") == expected
    monkeypatch.setattr(report, "__file__", str(tmp_path / "run_report.py"))
    assert git_commit() is None


def test_a_report_says_which_card_and_which_libraries_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "get_device_name": "NVIDIA A100-SXM4-80GB",
        "get_device_properties": SimpleNamespace(total_memory=80 * 10**9),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(machine, "driver_version", lambda: "580.82.07")
    args = SimpleNamespace(device=torch.device("cuda:0"), world_size=8)
    model = torch.nn.Linear(1, 1)
    found = describe_machine(SimpleNamespace(args=args, model=model))
    assert (found["attention"], found["allocator"]) == ("transformers'", os.environ["PYTORCH_ALLOC_CONF"])
    assert machine_text(found) == (
        f"{platform.node()}, 8 process(es), NVIDIA A100-SXM4-80GB, driver 580.82.07, CUDA 13.0, cuDNN 91002, "
        "NCCL 2.27.5"
    )
