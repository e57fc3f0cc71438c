"""Load a tokenizer, and give it the control tokens and the chat template."""

import os

from tokenizers import normalizers
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from training.consts import BREAKER, CONTROL_TOKENS, END
from training.encoding import answer_header, chat_template
from training.errors import UserError, first_line
from training.hub import check_on_hub


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a model directory or hub name, with the four control tokens, each one id.

    Tokens that are there keep their ids; missing control tokens get the next free ones. Saved, it renders and
    tokenizes chats by itself as training does. Raises UserError where there is no usable tokenizer.
    """
    tokenizer = load_base_tokenizer(path)
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS], special_tokens=True
    )
    tokenizer.eos_token = END
    tokenizer.clean_up_tokenization_spaces = False
    _remove_breakers(tokenizer)
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokenizer.chat_template = chat_template(special, answer_header(tokenizer))
    return tokenizer


def load_base_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """The tokenizer as it is found at `path`."""
    check_model_path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no tokenizer that can be loaded ({first_line(error)})") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"{path}: its tokenizer has no fast version (tokenizer.json), which this recipe needs"
        )
    return tokenizer


def check_model_path(path: str) -> None:
    """Raise UserError unless `path` is a directory with a model, or the name of a model on the hub."""
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "config.json")):
            raise UserError(f"{path}: a directory without config.json: there is no model in it")
    elif os.path.exists(path) or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{path}: no such model directory")
    else:
        check_on_hub(path, "model")


def _remove_breakers(tokenizer: PreTrainedTokenizerFast) -> None:
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is None:
        backend.normalizer = normalizers.Replace(BREAKER, "")
    elif backend.normalizer.normalize_str(BREAKER):
        backend.normalizer = normalizers.Sequence([normalizers.Replace(BREAKER, ""), backend.normalizer])
