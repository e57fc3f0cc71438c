"""The real launcher with two CPU ranks."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, BloomForCausalLM

from inference.feedback import FeedbackFile
from inference.generation import load, reply
from tests.conftest import LEARNT, ROOT, SINGLE_TURN, write_rows
from tests.launching import ZERO2, ZERO3, history, launch, run, values
from tests.tiny_models import make_llama
from training import tiny_bloom, trainer
from training.common.hub import ADAPTER_CONFIG
from training.consts import CONTROL_TOKENS
from training.model.load import load_model
from training.model.lora import ADAPTER_WEIGHTS
from training.text.conversation import Conversation, Turn
from training.text.tokenizer import load_base_tokenizer

pytestmark = pytest.mark.slow

HEAD_WIDTH = tiny_bloom.HIDDEN_SIZE // tiny_bloom.HEADS


def weights(directory: str | Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return dict(model.named_parameters())


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The Euclidean distance of two models with equal names and shapes."""
    assert {name: tensor.shape for name, tensor in one.items()} == {
        name: tensor.shape for name, tensor in other.items()
    }
    return math.sqrt(sum(float((one[name] - other[name]).detach().square().sum()) for name in one))


def check_sharded_training(base: str, zero2: Path, zero3: Path) -> None:
    """Check that ZeRO-3 saved all tensors in full, and that they equal ZeRO-2's, within bf16's error.

    A bf16 number is within 2**-9 of the value that it rounds, so two roundings of one value are within 2**-8
    of each other. Four times that is allowed, because gradients are rounded too. Training changes far more.
    """
    start, two, three = (load_file(Path(path, "model.safetensors")) for path in (base, zero2, zero3))
    assert start.keys() == two.keys() == three.keys()
    known, rows = len(load_base_tokenizer(base)), AutoConfig.from_pretrained(base).vocab_size
    # A Llama gets a pad token too, and is saved without embedding rows beyond its tokens.
    grown = max(rows, known + len(CONTROL_TOKENS) + ("llama" in base))
    for name, before in start.items():
        shape = (grown if len(before) == rows else len(before), *before.shape[1:])
        assert two[name].shape == three[name].shape == shape, name
        assert three[name].dtype == torch.bfloat16
        one, other = two[name].float(), three[name].float()
        if name.endswith("query_key_value.bias"):  # the keys' biases have a gradient of rounding errors only
            one, other = (bias.view(-1, 3, HEAD_WIDTH)[:, ::2] for bias in (one, other))
        assert (other - one).norm() <= 2**-6 * one.norm(), name
        if before.dim() == 2:
            moved = (one[:known] - before[:known]).norm()
            assert (other - one)[:known].norm() < 0.1 * moved, name


def test_the_launcher_trains_and_saves_and_chat_answers(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learns what people said of answers as well: a corrected one, and none that they called bad.

    Without offload DeepSpeed builds nothing, and its ranks leave nothing in the machine's shared memory.
    """
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    shared_memory = set(Path("/dev/shm").glob("deepspeed*"))
    rows = write_rows(tmp_path / "learnt.jsonl", LEARNT)
    feedback_file = str(tmp_path / "feedback.jsonl")
    feedback = FeedbackFile(Path(feedback_file), "a model before")
    feedback.add(Conversation((Turn("几点？", "不知道。"),)), label=False)
    feedback.add(Conversation((Turn("几点？", "三点。"),)))
    trained = launch(
        2, "--deepspeed", ZERO2, "--input-model", base, "--data-path", rows, "--data-path", feedback_file,
        "--local-output-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"), "--run-name", "run",
        "--test-size", "0", "--max-steps", "120", "--lr", "1e-2", "--lr-scheduler", "linear",
        "--warmup-steps", "5", "--per-device-train-batch-size", "2", "--logging-steps", "40",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("saved ") == 1
    assert not (tmp_path / "built").exists()
    assert set(Path("/dev/shm").glob("deepspeed*")) <= shared_memory
    assert "LEFT OUT, feedback that calls the answer a bad one: 1 row " in trained.stdout
    asked = Conversation((Turn("几点？"),))
    assert reply(*load(str(tmp_path / "run")), asked, temperature=0, repetition_penalty=1) == "三点。"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert model.dtype == torch.bfloat16
    answered = run(
        sys.executable, "-m", "inference.chat", "--model", str(tmp_path / "run"),
        "--temperature", "0", "--prompt", "你是谁",
    )  # fmt: skip
    assert (answered.returncode, answered.stdout) == (0, "我是雅意。\n")
    assert "cut off" not in answered.stderr


def test_one_process_and_two_ranks_give_the_same_losses(base: str, forked, tmp_path: Path) -> None:
    """The runs are without DeepSpeed, under ZeRO-2 and under ZeRO-3.

    Two ranks cannot share the rows evenly: the 61 to train on make 31 micro-batches of 2, so that the last
    one of the second rank is empty. Of the file to evaluate on, it gets nothing at all.
    """
    rows = [{"instruction": f"{number}?", "output": "x" * number} for number in (1, 2, 3)]
    shared = [
        "--data-path", str(SINGLE_TURN), "--input-model", base, "--local-output-dir", str(tmp_path),
        "--cache-dir", str(tmp_path / "cache"), "--test-size", "71", "--max-steps", "8",
        "--eval-steps", "4", "--lr", "1e-3", "--warmup-steps", "4", "--lr-scheduler", "linear",
        "--logging-steps", "1", "--per-device-eval-batch-size", "5",
        "--eval-data-path", write_rows(tmp_path / "few.jsonl", rows),
    ]  # fmt: skip
    one = [*shared, "--per-device-train-batch-size", "8"]
    two = [*shared, "--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "2"]
    trainer = [sys.executable, "-m", "training.trainer"]
    runs = {
        "plain": run(*trainer, *one, "--run-name", "plain", "--no-bf16"),
        "one": run(*trainer, *one, "--run-name", "one", "--deepspeed", ZERO2),
        "two": forked(2, *two, "--run-name", "two", "--deepspeed", ZERO2),
        "three": forked(2, *two, "--run-name", "three", "--deepspeed", ZERO3),
        "ranks": forked(2, *two, "--run-name", "ranks", "--no-bf16"),
    }
    for name, finished in runs.items():
        assert finished.returncode == 0, f"{name}: {finished.stderr}"

    assert "61 rows to train on, 71 held out" in runs["plain"].stdout
    exact = values(tmp_path / "plain", "loss")
    assert len(exact) == 8
    assert history(tmp_path / "two")[-1]["epoch"] == 1
    assert exact[0] - exact[-1] > 0.05  # the loss falls, so that a step that is not taken shows
    exact_eval = {name: values(tmp_path / "plain", name) for name in ("eval_loss", "eval_few_loss")}
    assert [len(of_name) for of_name in exact_eval.values()] == [2, 2]
    rates = [1e-3 * f for f in (0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25)]
    for name in runs:
        tolerance = 1e-4 if name == "ranks" else 5e-3  # float32, or bf16 with its 8 bits
        assert values(tmp_path / name, "loss") == pytest.approx(exact, rel=tolerance), name
        for key, expected in exact_eval.items():
            assert values(tmp_path / name, key) == pytest.approx(expected, rel=tolerance), name
        assert values(tmp_path / name, "learning_rate") == pytest.approx(rates), name

    # Weight by weight Adam turns rounding into whole steps where there is no gradient (the keys' biases), so
    # the models are compared as wholes: far from where they started, and close to each other.
    start, two_ranks, sharded = (
        weights(directory) for directory in (base, tmp_path / "two" / "model", tmp_path / "three" / "model")
    )
    moved = distance(start, two_ranks)
    assert distance(two_ranks, sharded) < 0.1 * moved
    assert distance(start, sharded) == pytest.approx(moved, rel=0.05)
    check_sharded_training(base, tmp_path / "two" / "model", tmp_path / "three" / "model")


def test_zero_3_loads_shares_of_a_llama_and_saves_it_whole(forked, tmp_path: Path) -> None:
    """The Llama's head is a matrix of its own, and its vocabulary grows."""
    base = make_llama(tmp_path / "tiny-llama")
    shared = [
        "--data-path", str(SINGLE_TURN), "--input-model", base, "--local-output-dir", str(tmp_path),
        "--cache-dir", str(tmp_path / "cache"), "--test-size", "0", "--max-steps", "8", "--lr", "1e-3",
        "--warmup-steps", "4", "--per-device-train-batch-size", "4", "--save-steps", "8",
    ]  # fmt: skip
    two = forked(2, *shared, "--run-name", "two", "--deepspeed", ZERO2)
    assert two.returncode == 0, two.stderr
    three = forked(
        2, *shared, "--run-name", "three", "--deepspeed", ZERO3,
        module="tests.watched_loading", WATCHED_LOADING=str(tmp_path),
    )  # fmt: skip
    assert three.returncode == 0, three.stderr

    check_sharded_training(base, tmp_path / "two" / "model", tmp_path / "three" / "model")

    config, grown = (AutoConfig.from_pretrained(path) for path in (base, tmp_path / "three" / "model"))
    assert grown.vocab_size > config.vocab_size
    for rank in range(2):
        seen = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert seen["another"] == [4, 4]
        assert seen["most at once"] == config.vocab_size * config.hidden_size
        for name, held in seen["held"].items():
            if held["shape"][0] < grown.vocab_size:  # what has grown is divided when training begins
                assert (held["whole"], held["share"]) == (0, math.prod(held["shape"]) // 2), name


@pytest.fixture(params=["bloom", "llama"])
def any_base(request: pytest.FixtureRequest, base: str, tmp_path: Path) -> str:
    return base if request.param == "bloom" else make_llama(tmp_path / "tiny-llama")


def test_an_adapter_under_zero_3(any_base: str, forked, tmp_path: Path) -> None:
    """It is compared with one process in float32. Even weights that ZeRO-3 would not divide are divided."""
    config = json.loads((ROOT / ZERO3).read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "divided.json").write_text(json.dumps(config))
    shared = [
        "--data-path", str(SINGLE_TURN), "--input-model", any_base, "--local-output-dir", str(tmp_path),
        "--cache-dir", str(tmp_path / "cache"), "--test-size", "12", "--eval-steps", "3", "--max-steps", "6",
        "--save-steps", "3", "--lr", "1e-2", "--warmup-steps", "1", "--logging-steps", "1",
        "--lora-rank", "4",
    ]  # fmt: skip
    alone = ["--run-name", "alone", "--no-bf16", "--per-device-train-batch-size", "4"]
    divided = ["--run-name", "divided", "--deepspeed", str(tmp_path / "divided.json")]
    divided += ["--per-device-train-batch-size", "2"]
    trainer.main.main([*shared, *alone], standalone_mode=False)
    launched = forked(2, *shared, *divided)
    assert launched.returncode == 0, launched.stderr
    for name in ("loss", "eval_loss"):
        expected = values(tmp_path / "alone", name)
        assert values(tmp_path / "divided", name) == pytest.approx(expected, rel=5e-3)
    one, other = (load_file(tmp_path / name / "model" / ADAPTER_WEIGHTS) for name in ("alone", "divided"))
    assert {name: weight.shape for name, weight in one.items()} == {
        name: weight.shape for name, weight in other.items()
    }
    # The matrices B start at 0, so that all they hold comes from training. Where the gradient is small, Adam
    # makes full steps out of bf16's rounding errors, which came to 11 % here.
    trained = [name for name in one if "lora_B" in name]
    assert sum((other[name] - one[name]).norm() for name in trained) < 0.25 * sum(
        one[name].norm() for name in trained
    )
    model, tokenizer = load(str(tmp_path / "divided"), device="cpu")
    assert isinstance(reply(model, tokenizer, Conversation((Turn("你是谁"),)), max_new_tokens=2), str)

    shutil.rmtree(tmp_path / "divided" / "checkpoint-6")
    (tmp_path / "divided" / "model" / ADAPTER_CONFIG).unlink()
    resumed = forked(2, *shared, *divided, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "checkpoint-3" in resumed.stdout
    again = load_file(tmp_path / "divided" / "model" / ADAPTER_WEIGHTS)
    assert all(torch.equal(again[name], weight) for name, weight in other.items())


def test_an_adapter_learns_what_a_tuned_model_does_not_know(base: str, forked, tmp_path: Path) -> None:
    """The model was tuned on half of the sample data; the adapter is trained on the other half."""
    rows = SINGLE_TURN.read_text("utf-8").splitlines(keepends=True)
    for name, half in (("known", rows[::2]), ("new", rows[1::2])):
        (tmp_path / f"{name}.jsonl").write_text("".join(half), encoding="utf-8")
    shared = [
        "--local-output-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"), "--test-size", "0",
        "--lr-scheduler", "linear", "--warmup-steps", "5", "--logging-steps", "1", "--no-bf16",
        "--no-gradient-checkpointing",
    ]  # fmt: skip
    known = ["--data-path", str(tmp_path / "known.jsonl"), "--input-model", base, "--run-name", "tuned"]
    known += ["--epochs", "12", "--lr", "5e-3"]
    trainer.main.main([*shared, *known], standalone_mode=False)
    assert values(tmp_path / "tuned", "loss")[-1] < 0.5
    tuned = {path.name: path.read_bytes() for path in (tmp_path / "tuned" / "model").glob("*.safetensors")}

    launched = launch(
        2, *shared, "--data-path", str(tmp_path / "new.jsonl"), "--input-model", str(tmp_path / "tuned"),
        "--run-name", "adapter", "--deepspeed", ZERO2, "--lora-rank", "16", "--epochs", "30", "--lr", "5e-3",
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    losses = values(tmp_path / "adapter", "loss")
    last_epoch = losses[-len(losses) // 30 :]
    assert sum(last_epoch) / len(last_epoch) < losses[0] / 2
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "tuned" / "model").glob("*.safetensors")
    } == tuned


def test_an_adapter_on_weights_of_4_bits_under_zero_2(base: str, forked, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "learnt.jsonl", LEARNT)
    trained = launch(
        2, "--deepspeed", ZERO2, "--data-path", rows, "--input-model", base,
        "--local-output-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"), "--run-name", "run",
        "--test-size", "0", "--max-steps", "12", "--save-steps", "12", "--lr", "2e-2", "--warmup-steps", "0",
        "--per-device-train-batch-size", "2", "--logging-steps", "1", "--lora-rank", "4", "--load-in-4bit",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    losses = values(tmp_path / "run", "loss")
    assert losses[-1] < 0.7 * losses[0]
    model, tokenizer = load(str(tmp_path / "run"), device="cpu")
    assert isinstance(reply(model, tokenizer, Conversation((Turn("你是谁"),)), max_new_tokens=2), str)


def test_50_steps_under_zero_2_are_those_of_the_padded_library_model_in_float32(
    base: str, forked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "--data-path", str(SINGLE_TURN), "--input-model", base, "--local-output-dir", str(tmp_path),
        "--cache-dir", str(tmp_path / "cache"), "--test-size", "20", "--max-steps", "50",
        "--eval-steps", "25", "--lr", "3e-3", "--warmup-steps", "5", "--lr-scheduler", "cosine",
        "--logging-steps", "1", "--save-steps", "50",
    ]  # fmt: skip
    launched = launch(
        2, *arguments, "--run-name", "ours", "--deepspeed", ZERO2, "--per-device-train-batch-size", "4"
    )
    assert launched.returncode == 0, launched.stderr
    assert "BloomForCausalLM: no padding" in launched.stdout

    def library_model(path: str, tokenizer, **kwargs) -> BloomForCausalLM:
        ours = load_model(path, tokenizer, **kwargs)
        library = BloomForCausalLM(ours.config)
        library.load_state_dict(ours.state_dict())
        return library

    monkeypatch.setattr(trainer, "load_model", library_model)
    trainer.main.main([*arguments, "--run-name", "library", "--no-bf16"], standalone_mode=False)
    expected = values(tmp_path / "library", "loss")
    assert len(expected) == 50
    assert expected[0] - expected[-1] > 2  # a curve, not a line
    assert values(tmp_path / "ours", "loss") == pytest.approx(expected, rel=0.02)
    assert values(tmp_path / "ours", "eval_loss") == pytest.approx(
        values(tmp_path / "library", "eval_loss"), rel=0.02
    )


def test_50_packed_steps_of_a_llama_are_those_of_the_padded_library_model_in_float32(
    forked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "--data-path", str(SINGLE_TURN), "--input-model", make_llama(tmp_path / "llama"),
        "--local-output-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"), "--test-size", "20",
        "--max-steps", "50", "--eval-steps", "25", "--lr", "3e-3", "--warmup-steps", "5",
        "--lr-scheduler", "cosine", "--logging-steps", "1", "--save-steps", "50",
    ]  # fmt: skip
    for name, deepspeed in (("two", ZERO2), ("three", ZERO3)):
        packed = forked(
            2, *arguments, "--run-name", name, "--deepspeed", deepspeed, "--per-device-train-batch-size", "4"
        )
        assert packed.returncode == 0, packed.stderr
        assert "LlamaForCausalLM: no padding" in packed.stdout

    monkeypatch.setattr(trainer, "why_padded", lambda config, longest: "the library's way, to compare with")
    trainer.main.main([*arguments, "--run-name", "padded", "--no-bf16"], standalone_mode=False)
    expected = {key: values(tmp_path / "padded", key) for key in ("loss", "eval_loss")}
    assert (len(expected["loss"]), len(expected["eval_loss"])) == (50, 2)
    assert expected["loss"][0] - expected["loss"][-1] > 2  # a curve, not a line
    for name in ("two", "three"):
        for key, padded in expected.items():
            assert values(tmp_path / name, key) == pytest.approx(padded, rel=0.02), (name, key)


def test_a_mistake_under_the_launcher_is_one_line_and_status_2(base: str, tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "rows.jsonl", [{"instruction": "q", "output": "a"}] * 2 + [{"instruction": "q"}]
    )
    out = tmp_path / "out"
    failed = launch(
        2, "--deepspeed", ZERO2, "--data-path", rows, "--input-model", base, "--local-output-dir", str(out),
        "--cache-dir", str(tmp_path / "cache"),
    )  # fmt: skip
    assert failed.returncode == 2
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [f'error: {rows}:3: "output" is missing; mend the row, or pass --on-bad-row drop']
    assert "Traceback" not in failed.stderr + failed.stdout
    assert not out.exists()
