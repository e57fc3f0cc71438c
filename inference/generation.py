"""Load a saved model and let it answer: in one string, or piece by piece.

model, tokenizer = load("checkpoints/demo")
print(reply(model, tokenizer, Conversation((Turn("你是谁"),))))
"""

import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import BaseStreamer

from inference.kv_cache import KVCache
from inference.placing import auto_placing
from training.common.errors import UserError, first_line
from training.common.hub import model_directory
from training.consts import (
    CONTEXT,
    CONTROL_TOKENS,
    END,
    MAX_NEW_TOKENS,
    REPETITION_PENALTY,
    TEMPERATURE,
    TOP_P,
)
from training.model.context import context_limit
from training.model.lora import load_any, quantization_config
from training.text.conversation import Conversation
from training.text.encoding import answer_header, encode_prompt
from training.text.saved_template import is_of_this_recipe
from training.text.template import CLOSING, COLON, OPENING
from training.text.tokenizer import load_base_tokenizer, teach_to_chat


def load(
    path: str,
    *,
    dtype: torch.dtype | str = "auto",
    device: str = "auto",
    bits: int | None = None,
    allow_untaught: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """(model, tokenizer) of a fine-tuned model, or of an adapter and its base, ready to answer.

    path: a directory, also that of a run, or a name on the hub. dtype: "auto" is the one that was saved.
    device: "auto" is one card where the model fits on it, and else what accelerate makes of all cards and the
    processor; other names are torch's. bits: 8 or 4 quantizes the weights of the layers to that many.
    allow_untaught: whether a model without control tokens is accepted; it gets them, untrained, and this
    recipe's chat template. Raises UserError where there is no such device, no model, or one that was trained
    with another chat template.
    """
    if device != "auto":
        check_device(device)
    path = model_directory(path)
    tokenizer = load_base_tokenizer(path)
    check_is_taught(path, tokenizer, allow_untaught)
    model = load_any(
        path,
        tokenizer,
        dtype=dtype,
        new_tokens=teach_to_chat(tokenizer),
        device_map=auto_placing(path, dtype, bits) if device == "auto" else {"": device},
        quantization_config=quantization_config(bits) if bits else None,
        use_safetensors=True,  # other files of weights can carry code
    )
    return model.eval(), tokenizer


def check_is_taught(path: str, tokenizer: PreTrainedTokenizerFast, allow_untaught: bool) -> None:
    """Raise UserError for a model without control tokens, or one trained with another chat template.

    allow_untaught: whether a model without control tokens is accepted, with a warning, whatever its template.

    A model without a chat template is accepted: it may be one of the original release, which had none.
    """
    missing = [token for token in CONTROL_TOKENS if token not in tokenizer.get_vocab()]
    if missing:
        lack = f"{path}: its tokenizer has no {', '.join(missing)}"
        if not allow_untaught:
            raise UserError(f"{lack}; fine-tune it first (python -m training.trainer)")
        logging.getLogger(__name__).warning(
            "%s; they are added, with embedding rows that were never trained%s",
            lack,
            "; its own chat template is not used" if tokenizer.chat_template else "",
        )
        return
    if tokenizer.chat_template is not None and not is_of_this_recipe(tokenizer):
        raise UserError(
            f"{path}: its chat template is not the one of this recipe: it was trained on other texts; "
            "use the tool it was made for, or fine-tune it (python -m training.trainer)"
        )


def check_device(device: str) -> None:
    """Raise UserError for a device that torch does not know or does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {first_line(error)}") from None


def context_length(model: PreTrainedModel) -> int:
    """The number of tokens that a prompt and its answer may have together.

    ALiBi sets a Bloom no limit: there it is the length that it was trained on, or CONTEXT where its
    configuration does not say.
    """
    return (
        context_limit(model.config) or getattr(model.config.get_text_config(), "seq_length", None) or CONTEXT
    )


def room_for_prompt(model: PreTrainedModel, max_new_tokens: int) -> int:
    """The number of tokens that a prompt may have.

    The rest of the context is for the answer: `max_new_tokens`, but no more than a quarter of the context.
    """
    context = context_length(model)
    return context - min(max_new_tokens, context // 4)


def room_for_answer(model: PreTrainedModel, prompt_tokens: int, max_new_tokens: int) -> int:
    """`max_new_tokens`, or what is left of the tokens that the model can read, if that is less.

    Raises UserError where the prompt leaves no room for an answer.
    """
    limit = context_limit(model.config)
    if limit is None:
        return max_new_tokens
    if prompt_tokens >= limit:
        raise UserError(
            f"too long: {prompt_tokens:,} tokens leave no room for an answer in the model's context of "
            f"{limit:,}"
        )
    return min(max_new_tokens, limit - prompt_tokens)


class KeywordsStoppingCriteria(StoppingCriteria):
    """Ends each sequence of a batch at the first new token that is one of `keywords_ids`.

    Generation goes on until all have ended. Those that ended before are padded if `generate` knows an
    eos_token_id; otherwise it goes on writing to them, after their keyword.
    """

    def __init__(self, keywords_ids: Sequence[int]) -> None:
        self.keywords = list(keywords_ids)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        """input_ids: (batch, tokens so far). Returns booleans, (batch,)."""
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
    input_ids: Sequence[int] | None = None,
    kv_cache: KVCache | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    repetition_penalty: float = REPETITION_PENALTY,
) -> "Answer":
    """The answer as it comes: `with stream(...) as answer:` and iterate over its pieces of text.

    input_ids: the prompt's, for callers that have tokenized the conversation already. kv_cache: the one of
    this dialogue; what it holds of the conversation is not computed again. temperature 0 is greedy. Leaving
    the `with` block early stops the model.
    """
    prompt_ids = encode_prompt(conversation, tokenizer) if input_ids is None else list(input_ids)
    config = generation_config(
        tokenizer,
        max_new_tokens=room_for_answer(model, len(prompt_ids), max_new_tokens),
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
    )
    return Answer(model, tokenizer, prompt_ids, config, KVCache() if kv_cache is None else kv_cache)


def generation_config(
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    repetition_penalty: float = REPETITION_PENALTY,
) -> GenerationConfig:
    """transformers' configuration for this sampling; `<|End|>` ends an answer and pads a batch."""
    end = tokenizer.convert_tokens_to_ids(END)
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or 1.0,
        top_p=top_p if temperature else 1.0,
        repetition_penalty=repetition_penalty,
        eos_token_id=end,
        pad_token_id=end,
    )


def answer_text(tokenizer: PreTrainedTokenizerFast, token_ids: Iterable[int]) -> Iterator[str]:
    """The text of an answer's tokens, up to `<|End|>` and without the newlines that stand around an answer.

    It comes in pieces of whole characters, each as soon as its tokens are there; a Chinese character can take
    several tokens.
    """
    end_id = tokenizer.convert_tokens_to_ids(END)
    opening = OPENING if answer_header(tokenizer) == COLON else ""
    held_back = ""
    character: list[int] = []
    for token_id in token_ids:
        if token_id == end_id:
            held_back = held_back.removesuffix(CLOSING)
            break
        character.append(token_id)
        piece = tokenizer.backend_tokenizer.decode(character)
        if piece.endswith("\ufffd"):  # the rest of its bytes may come
            continue
        character.clear()
        if piece:
            piece, opening = piece.removeprefix(opening), ""
        so_far = held_back + piece
        text = so_far.rstrip("\n")
        held_back = so_far[len(text) :]
        if text:
            yield text
    if held_back:
        yield held_back


class Answer:
    """An answer in the making; iterating gives its text as `answer_text` does.

    text: what was yielded so far. ended: whether the model said `<|End|>`; false while it generates, when it
    was stopped, and when it ran into `max_new_tokens`. stopped: whether somebody called `stop`.
    prompt_tokens: the length of the prompt; recalled_tokens: how many of them came from the KV cache.
    tokens: the length of the answer so far; seconds_to_first, seconds: the time until its first and latest
    token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        prompt_ids: list[int],
        config: GenerationConfig,
        kv_cache: KVCache,
    ) -> None:
        self.text = ""
        self.ended = self.stopped = False
        self.prompt_tokens = len(prompt_ids)
        self.recalled_tokens = self.tokens = 0
        self.seconds = self.seconds_to_first = 0.0
        self._tokenizer = tokenizer
        self._kv_cache = kv_cache
        self._tokens = _TokenQueue()
        self._stop = _Stop()
        self._worker = threading.Thread(target=self._generate, args=(model, prompt_ids, config), daemon=True)

    @property
    def tokens_per_second(self) -> float:
        """The speed after the first token, without the time until it."""
        return (self.tokens - 1) / max(self.seconds - self.seconds_to_first, 1e-9)

    def stop(self) -> None:
        """Stop the model after the token that it is computing."""
        self.stopped = self._stop.now = True

    def __enter__(self) -> "Answer":
        self._started = time.perf_counter()
        self._worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.now = True
        self._worker.join()

    def __iter__(self) -> Iterator[str]:
        for piece in answer_text(self._tokenizer, self._count_tokens()):
            self.text += piece
            yield piece

    def _generate(self, model: PreTrainedModel, prompt_ids: list[int], config: GenerationConfig) -> None:
        input_ids = torch.tensor([prompt_ids], device=model.device)
        try:
            cache = self._kv_cache.recall(prompt_ids)
            self.recalled_tokens = cache.get_seq_length()
            sequences = model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                past_key_values=cache,
                generation_config=config,
                streamer=self._tokens,
                stopping_criteria=StoppingCriteriaList([self._stop]),
            )
            self._kv_cache.keep(cache, sequences[0].tolist())
        except torch.OutOfMemoryError:
            self._tokens.fail(
                UserError(
                    f"the memory does not suffice for an answer after {len(prompt_ids):,} tokens; begin a "
                    "new dialogue, or load the model with --load-in-8bit or --load-in-4bit"
                )
            )
        except BaseException as error:  # raised again where the answer is read
            self._tokens.fail(error)

    def _count_tokens(self) -> Iterator[int]:
        end_id = self._tokenizer.convert_tokens_to_ids(END)
        for token_id in self._tokens:
            self.seconds = time.perf_counter() - self._started
            self.seconds_to_first = self.seconds_to_first or self.seconds
            self.tokens += 1
            self.ended = token_id == end_id
            yield token_id


class _TokenQueue(BaseStreamer):
    """The tokens that `generate` produces after the prompt, for another thread to iterate over."""

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
    """Ends every sequence of a batch once `now` is set."""

    now = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return torch.full(input_ids.shape[:1], self.now, device=input_ids.device)
