"""Load a saved model and let it answer: in one string, or piece by piece.

model, tokenizer = load("checkpoints/demo")
print(reply(model, tokenizer, Conversation((Turn("你是谁"),))))
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType

import torch
from tokenizers.decoders import DecodeStream
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import BaseStreamer

from training.consts import CONTROL_TOKENS, END, MAX_NEW_TOKENS, REPETITION_PENALTY, TEMPERATURE, TOP_P
from training.conversation import Conversation
from training.encoding import answer_header, encode_prompt
from training.errors import UserError, first_line
from training.model import load_model
from training.tokenizer import load_base_tokenizer, load_tokenizer

# What stands around an answer in the text of a conversation.
OPENING = "\n"
CLOSING = "\n\n"


def load(
    path: str, *, dtype: torch.dtype | str = "auto", device: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """(model, tokenizer) of a fine-tuned model, ready to answer.

    dtype: "auto" is what was saved. device: "auto" lets accelerate place the weights; else as torch names it.
    Raises UserError where there is no such device, no model, or one that was never taught to chat: it knows
    no control tokens.
    """
    if device != "auto":
        check_device(device)
    unknown = set(CONTROL_TOKENS) - load_base_tokenizer(path).get_vocab().keys()
    if unknown:
        raise UserError(
            f"{path}: its tokenizer has no {END}: fine-tune it first (python -m training.trainer)"
        )
    tokenizer = load_tokenizer(path)
    model = load_model(path, tokenizer, dtype=dtype, device_map="auto" if device == "auto" else {"": device})
    return model.eval(), tokenizer


def check_device(device: str) -> None:
    """Raise UserError for a device that torch does not know or does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {first_line(error)}") from None


class KeywordsStoppingCriteria(StoppingCriteria):
    """Ends each row of a batch at the first new token that is one of `keywords_ids`.

    The whole batch ends with its last row; `generate` pads the rows that ended before if it knows an
    eos_token_id, and otherwise goes on writing to them, behind their keyword.
    """

    def __init__(self, keywords_ids: Sequence[int]) -> None:
        self.keywords = list(keywords_ids)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        """input_ids: (rows, tokens so far). Returns one boolean a row."""
        return torch.isin(input_ids[:, -1], torch.tensor(self.keywords, device=input_ids.device))


def reply(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, conversation: Conversation, **sampling
) -> str:
    """The answer to a conversation whose last turn has none. `sampling` is as for `stream`."""
    with stream(model, tokenizer, conversation, **sampling) as answer:
        return "".join(answer)


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversation: Conversation,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    repetition_penalty: float = REPETITION_PENALTY,
) -> "Answer":
    """The answer as it comes: `with stream(...) as answer:` and iterate over its pieces of text.

    temperature 0 is greedy. Leaving the `with` block early stops the model.
    """
    end = tokenizer.convert_tokens_to_ids(END)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or 1.0,
        top_p=top_p if temperature else 1.0,
        repetition_penalty=repetition_penalty,
        eos_token_id=end,
        pad_token_id=end,
    )
    return Answer(model, tokenizer, encode_prompt(conversation, tokenizer), config)


class Answer:
    """An answer in the making; iterating gives its text in whole characters, without what stands around it.

    text: what was given so far. ended: whether the model said `<|End|>`; false while it speaks, when it was
    stopped, and when it ran into `max_new_tokens`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        prompt_ids: list[int],
        config: GenerationConfig,
    ) -> None:
        self.text = ""
        self.ended = False
        self._tokenizer = tokenizer
        self._end_id = tokenizer.convert_tokens_to_ids(END)
        self._opening = OPENING if answer_header(tokenizer) == ":" else ""
        self._tokens = _TokenQueue()
        self._stop = _Stop()
        self._worker = threading.Thread(target=self._generate, args=(model, prompt_ids, config), daemon=True)

    def __enter__(self) -> "Answer":
        self._worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.now = True
        self._worker.join()

    def __iter__(self) -> Iterator[str]:
        for piece in self._trimmed(self._decoded()):
            self.text += piece
            yield piece

    def _generate(self, model: PreTrainedModel, prompt_ids: list[int], config: GenerationConfig) -> None:
        input_ids = torch.tensor([prompt_ids], device=model.device)
        try:
            model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=config,
                streamer=self._tokens,
                stopping_criteria=StoppingCriteriaList([self._stop]),
            )
        except BaseException as error:  # raised again where the answer is read
            self._tokens.fail(error)

    def _decoded(self) -> Iterator[str]:
        """Text of whole characters: a Chinese character can be several tokens."""
        decoder = DecodeStream(skip_special_tokens=True)
        for token_id in self._tokens:
            self.ended = token_id == self._end_id
            text = decoder.step(self._tokenizer.backend_tokenizer, token_id)
            if text:
                yield text

    def _trimmed(self, pieces: Iterator[str]) -> Iterator[str]:
        """Without the newline that opens an answer and the blank line that closes it."""
        at_start, held = True, ""
        for piece in pieces:
            if at_start:
                piece = piece.removeprefix(self._opening)
                at_start = False
            spoken = (held + piece).rstrip("\n")
            held = (held + piece)[len(spoken) :]
            if spoken:
                yield spoken
        if self.ended:
            held = held.removesuffix(CLOSING)
        if held:
            yield held


class _TokenQueue(BaseStreamer):
    """What `generate` produces after the prompt, for another thread to iterate over."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self._items.put(int(value))
        self._prompt_seen = True

    def end(self) -> None:
        self._items.put(None)

    def fail(self, error: BaseException) -> None:
        self._items.put(error)

    def __iter__(self) -> Iterator[int]:
        while (item := self._items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


class _Stop(StoppingCriteria):
    """Ends every row once `now` is set."""

    now = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return torch.full(input_ids.shape[:1], self.now, device=input_ids.device)
