import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT, SINGLE_TURN, write_rows
from training import trainer
from training.common.errors import UserError
from training.common.option_texts import Source, parse_source
from training.common.options import Options, default_cache_dir
from training.data.examples import build_datasets
from training.run.resume import default_run_name
from training.text.conversation import from_row
from training.text.encoding import encode

# The original's fine-tuning command, word for word.
ORIGINAL_COMMAND = """
    --data-path ./data/yayi_train_example.json
    --input-model ./checkpoints/yayi-7b
    --deepspeed ./config/deepspeed_zero2_bf16.json
    --epochs 2
    --local-output-dir ./checkpoints
    --per-device-train-batch-size 8
    --per-device-eval-batch-size 8
    --logging-steps 1
    --save-steps 100
    --save-total-limit 10
    --eval-steps 100
    --warmup-steps 100
    --test-size 400
    --lr 5e-7
    --seed 515
"""


def parse(arguments: str) -> dict:
    return trainer.main.make_context("trainer", arguments.split()).params


def test_the_original_command_parses() -> None:
    assert {name: value for name, value in parse(ORIGINAL_COMMAND).items() if value is not None} == {
        "data_path": (Source("./data/yayi_train_example.json"),),
        "on_bad_row": "error",
        "cache_dir": default_cache_dir(),
        "input_model": "./checkpoints/yayi-7b",
        "deepspeed": "./config/deepspeed_zero2_bf16.json",
        "epochs": 2,
        "local_output_dir": Path("checkpoints"),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "logging_steps": 1,
        "report_to": ("tensorboard",),
        "save_steps": 100,
        "save_total_limit": 10,
        "eval_steps": 100,
        "warmup_steps": 100,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "test_size": 400,
        "eval_data_path": (),
        "learn": "all",
        "lr": 5e-7,
        "seed": 515,
        "lr_scheduler": "constant",
        "warmup_shape": "linear",
        "gradient_accumulation_steps": 1,
        "bf16": True,
        "gradient_checkpointing": True,
        "ddp_timeout": 1800,
        "resume": False,
        "resume_anyway": False,
        "save_only_model": False,
        "lora_dropout": 0.0,
        "lora_target": "auto",
        "load_in_4bit": False,
        "plan": False,
    }


def test_only_three_options_are_required() -> None:
    required = {option.opts[0] for option in trainer.main.params if option.required}
    assert required == {"--data-path", "--input-model", "--local-output-dir"}


def test_what_the_launcher_passes_parses() -> None:
    required = "--data-path a --input-model b --local-output-dir c"
    assert parse(f"--local_rank=1 {required}")["local_rank"] == 1
    assert parse(f"{required} --no-bf16 --no-gradient-checkpointing")["bf16"] is False


def test_every_option_says_what_it_does(outcome) -> None:
    names = parse("--data-path a --input-model b --local-output-dir c").keys()
    assert [option.name for option in trainer.main.params if option.name in names and not option.help] == []
    status, out, _ = outcome(trainer.main, "--help")
    assert status == 0
    for group in ("Data:", "Model:", "Optimisation:", "Memory and machine:", "Progress:"):
        assert group in out


def test_the_run_directory_is_named_after_the_model_and_the_time(tmp_path: Path) -> None:
    (tmp_path / "a-run").mkdir()
    assert default_run_name("./checkpoints/yayi-7b/").startswith("yayi-7b-sft-2")
    assert default_run_name("org/model").startswith("model-sft-2")
    assert default_run_name(str(tmp_path / "a-run" / "model")).startswith("model-sft-2")
    (tmp_path / "a-run" / "run.json").touch()
    assert default_run_name(str(tmp_path / "a-run" / "model")).startswith("a-run-sft-2")
    assert default_run_name(".").startswith(f"{Path.cwd().name}-sft-2")


def test_a_run_from_rows_to_a_model_that_plain_transformers_loads(tuned: str) -> None:
    run_dir = Path(tuned).parent
    checkpoint = run_dir / "checkpoint-120"
    assert {"config.json", "model.safetensors", "tokenizer.json", "optimizer.pt"} <= {
        file.name for file in checkpoint.iterdir()
    }
    assert {file.stat().st_mode & 0o777 for file in checkpoint.rglob("*") if file.is_file()} == {0o644}
    # What the run wrote for itself is beside the model, not in it.
    assert {path.name for path in run_dir.iterdir()} == {
        ".lock", "checkpoint-100", "checkpoint-120", "loss.png", "metrics.jsonl", "model", "options.yaml",
        "report.json", "report.md", "run.json", "runs",
    }  # fmt: skip
    assert list((run_dir / "runs").rglob("events.out.tfevents*"))
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [40, 80, 120]

    tokenizer = AutoTokenizer.from_pretrained(tuned)
    model = AutoModelForCausalLM.from_pretrained(tuned)
    question = [{"role": "user", "content": "你是谁"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    ids = model.generate(**prompt, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert tokenizer.decode(ids) == "\n我是雅意。\n\n<|End|>"


def test_the_model_of_a_bf16_run_is_in_bf16(base: str, tmp_path: Path, capsys) -> None:
    trainer.main.main(
        f"--data-path {SINGLE_TURN} --input-model {base} --local-output-dir {tmp_path} --run-name run "
        "--max-steps 2 --per-device-train-batch-size 2 --test-size 3 --eval-steps 1 --warmup-steps 0 "
        "--gradient-accumulation-steps 2 --save-steps 1 --save-total-limit 1 --max-length 400 "
        f"--cache-dir {tmp_path / 'cache'}".split(),
        standalone_mode=False,
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16
    assert model.config.seq_length == 2048  # what it can read is not made less by what it was trained on
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    out = capsys.readouterr().out
    assert "3 held out" in out
    assert out.count("evaluation loss") == 2


def data_options(tmp_path: Path, *data_paths: str, **options: object) -> Options:
    usual = {
        "max_length": 500,
        "test_size": 0,
        "seed": 1,
        "on_bad_row": "error",
        "cache_dir": tmp_path / "cache",
    }
    sources = tuple(parse_source(path) for path in data_paths)
    return Options(**{**usual, **options}, data_path=sources)


def sample_rows(count: int) -> list[dict]:
    return [json.loads(line) for line in SINGLE_TURN.read_text("utf-8").splitlines()[:count]]


def test_a_test_size_that_leaves_nothing_to_train_on_is_said_loudly(tokenizer, tmp_path, capsys) -> None:
    path = write_rows(tmp_path / "rows.jsonl", sample_rows(20))
    train_rows, test_rows = build_datasets(data_options(tmp_path, path, test_size=400), tokenizer)
    assert (len(train_rows), len(test_rows)) == (18, 2)
    out = capsys.readouterr().out
    assert "WARNING: --test-size 400 would leave none of the rows to train on; a tenth" in out
    assert "18 rows to train on, 2 held out" in out


def test_cut_and_dropped_rows_are_counted_and_named(tokenizer, tmp_path, capsys) -> None:
    turn = [{"from": "human", "value": "q"}, {"from": "yayi", "value": "a"}]
    rows = [{"conversations": turn}, {"conversations": turn * 9}, {"instruction": "q" * 500, "output": "a"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    train_rows, _ = build_datasets(data_options(tmp_path, path, max_length=100), tokenizer)
    assert len(train_rows) == 2
    out = capsys.readouterr().out
    assert f"cut after the last turn within --max-length: 1 row ({path}:2)" in out
    assert f"DROPPED, no answer to learn within --max-length: 1 row ({path}:3)" in out


def test_rows_that_cannot_be_used_are_all_listed_or_dropped_and_counted(tokenizer, tmp_path, capsys) -> None:
    rows = [*sample_rows(5), {"instruction": "q", "output": " "}, {"instruction": "q"}, {"output": "\n"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError) as error:
        build_datasets(data_options(tmp_path, path), tokenizer)
    assert str(error.value) == "3 of 8 rows cannot be used; mend them, or pass --on-bad-row drop"
    assert error.value.details == [
        f'{path}:6: "output" is empty',
        f'{path}:7: "output" is missing',
        f'{path}:8: a row needs one of "instruction", "conversations", "messages", "prompt", "question", '
        '"query", "input", "content"; this one has nothing; `--columns question=...,answer=...`, of '
        "training.trainer, training.check and training.convert, says which to read",
    ]
    assert capsys.readouterr().out == ""
    train_rows, _ = build_datasets(data_options(tmp_path, path, on_bad_row="drop"), tokenizer)
    assert len(train_rows) == 5
    assert f'DROPPED, cannot be used, "output" is empty: 1 row ({path}:6)' in capsys.readouterr().out


def test_files_are_mixed_by_their_weights(tokenizer, tmp_path, capsys) -> None:
    rows = sample_rows(30)
    one = write_rows(tmp_path / "one.jsonl", rows[:10])
    two = write_rows(tmp_path / "two.jsonl", rows[10:])
    options = data_options(tmp_path, f"{one}:3", f"{two}:0.5")
    train_rows, _ = build_datasets(options, tokenizer)
    seen = [tuple(example["input_ids"]) for example in train_rows]
    encoded = [tuple(encode(from_row(row), tokenizer)["input_ids"]) for row in rows]
    assert [seen.count(row) for row in encoded[:10]] == [3] * 10
    assert sorted(seen.count(row) for row in encoded[10:]) == [0] * 10 + [1] * 10
    out = capsys.readouterr().out
    assert f"{one}: weight 3: 30 rows, of 10" in out
    assert f"{two}: weight 0.5: 10 rows, of 20" in out
    assert "40 rows to train on, 0 held out" in out


def test_rows_with_one_prompt_stay_on_one_side_and_are_counted(tokenizer, tmp_path, capsys) -> None:
    rows = [{"instruction": f"q{i % 20}", "output": f"a{i}"} for i in range(40)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    options = data_options(tmp_path, path, test_size=10)
    train_rows, test_rows = build_datasets(options, tokenizer)
    prompts = [
        {tuple(example["input_ids"][example["labels"] == -100]) for example in side}
        for side in (train_rows, test_rows)
    ]
    assert (len(train_rows), len(test_rows)) == (30, 10)
    assert not prompts[0] & prompts[1]
    assert (
        "rows changed sides, so that rows with one prompt, and dialogues that go on from one another, are on "
        "the same side\n" in capsys.readouterr().out
    )


@pytest.fixture
def mistakes(base: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    rows = [{"instruction": "q", "output": "a"}] * 2 + [{"instruction": "q", "input": ""}]
    (tmp_path / "empty-dir").mkdir()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    return {
        "data": write_rows(tmp_path / "rows.jsonl", rows),
        "dir": str(tmp_path),
        "base": base,
        "good": str(SINGLE_TURN),
        "cache": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data-path {dir}/nope.jsonl", "{dir}/nope.jsonl: no such file"),
        ("--data-path {data}", '{data}:3: "output" is missing; mend the row, or pass --on-bad-row drop'),
        (
            "--data-path {good} --cache-dir {dir}/file/cache",
            "{dir}/file/cache: Not a directory; --cache-dir says",
        ),
        ("--data-path {good}:0", "{good}:0: the weight after the last colon is not a number above 0"),
        ("--test-size 2.5", "'--test-size': 2.5 is neither a count"),
        ("--deepspeed {dir}/nope.json", "{dir}/nope.json: No such file"),
        ("--deepspeed {dir}/broken.json", "{dir}/broken.json: not JSON"),
        ("--input-model {dir}/empty-dir", "{dir}/empty-dir: a directory without config.json"),
        (
            "--input-model org/model",
            "org/model: not a local path, and https://huggingface.co cannot be asked",
        ),
        ("--local-output-dir {dir}/file/out", "{dir}/file: Not a directory"),
        ("--max-length 5", "every row is longer than --max-length 5"),
        ("--run-name full", "{dir}/full: holds something already; it is not written over"),
        ("--run-name ../run", "--run-name ../run: not a plain name"),
        ("--run-name {dir}/run", "not a plain name"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    outcome, mistakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    def no_network(name: str, repo_type: str) -> bool:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.repo_exists", no_network)
    before = sorted(tmp_path.rglob("*"))
    usual = "--input-model {base} --local-output-dir {dir} --run-name run --cache-dir {cache} "
    if "--data-path" not in arguments:
        usual += "--data-path {good} "
    status, out, err = outcome(trainer.main, (usual + arguments).format(**mistakes))
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message.format(**mistakes) in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [
        ("--bf16 --deepspeed config/deepspeed_zero2_bf16.json", torch.bfloat16),
        ("--no-bf16 --deepspeed config/deepspeed_zero2_bf16.json", torch.float32),
        ("--bf16", torch.float32),
    ],
)
def test_weights_are_loaded_in_bf16_where_deepspeed_keeps_the_float32_ones(
    base, tmp_path, monkeypatch, arguments: str, dtype: torch.dtype
) -> None:
    class Loaded(Exception):
        pass

    def load_model(path, tokenizer, *, dtype, **how):
        raise Loaded(dtype)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(trainer, "start_deepspeed", lambda timeout: None)
    monkeypatch.setattr(trainer, "load_model", load_model)
    usual = (
        f"--data-path {SINGLE_TURN} --input-model {base} --local-output-dir {tmp_path} --cache-dir {tmp_path}"
    )
    with pytest.raises(Loaded) as loaded:
        trainer.main.main(f"{usual} {arguments}".split(), standalone_mode=False)
    assert loaded.value.args == (dtype,)


def test_a_configuration_that_contradicts_the_command_line_is_refused(
    outcome, base, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(trainer, "start_deepspeed", lambda timeout: None)
    config = json.loads((ROOT / "config" / "deepspeed_zero2_bf16.json").read_text())
    config["train_micro_batch_size_per_gpu"] = 3
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(config))
    status, _, err = outcome(
        trainer.main,
        f"--data-path {SINGLE_TURN} --input-model {base} --local-output-dir {tmp_path} --deepspeed {path} "
        f"--cache-dir {tmp_path}",
    )
    assert status == 2
    assert "contradicts the command line" in err
    assert "train_micro_batch_size_per_gpu=3" in err
