import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import LEARNT, write_rows
from training.data.encoded import load_encoded
from training.data.examples import Examples
from training.run.eval_answers import answer_held_out_prompts, prompt_and_answer, repeated_share
from training.text.tokenizer import load_tokenizer


def test_the_first_answer_and_what_stands_before_it() -> None:
    """
    ids     5 6 7 8 9 4 3
    labels  . . 7 8 . . 3
    """
    row = {
        "input_ids": np.array([5, 6, 7, 8, 9, 4, 3]),
        "labels": np.array([-100, -100, 7, 8, -100, -100, 3]),
    }
    prompt, answer = prompt_and_answer(row)
    assert (prompt.tolist(), answer.tolist()) == ([5, 6], [7, 8])
    prompt, answer = prompt_and_answer({name: ids[2:4] for name, ids in row.items()})
    assert (prompt.tolist(), answer.tolist()) == ([], [7, 8])


@pytest.mark.parametrize(
    ("ids", "share"), [([], 0), ([1, 2, 3], 0), ([1, 2, 3, 4, 5], 0), ([1] * 7, 0.75), ([1, 2] * 4, 0.6)]
)
def test_how_much_is_repeated(ids: list[int], share: float) -> None:
    assert repeated_share(ids) == pytest.approx(share)


def test_a_model_that_knows_the_rows_answers_as_they_do(tuned: str, base: str, tmp_path) -> None:
    tokenizer = load_tokenizer(tuned)
    path = write_rows(tmp_path / "rows.jsonl", LEARNT)
    rows = Examples([load_encoded(path, tokenizer, 2048, tmp_path)], range(4))
    found = answer_held_out_prompts(AutoModelForCausalLM.from_pretrained(tuned), tokenizer, rows)
    assert (found.ended, found.length) == (1, 1)
    assert found.repeated < 0.2
    assert found.text.endswith("你是谁\\n\\n<|YaYi|>:\\n我是雅意。\\n\\n<|End|>")

    torch.manual_seed(0)
    untaught = AutoModelForCausalLM.from_pretrained(tuned)
    untaught.get_output_embeddings().weight.data.normal_()
    found = answer_held_out_prompts(untaught, tokenizer, rows)
    assert found.ended < 1
    assert found.length > 1
