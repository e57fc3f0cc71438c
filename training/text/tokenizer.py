"""Load a tokenizer, and give it the control tokens and the chat template."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from tokenizers import Tokenizer, models, normalizers
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from training.common.errors import UserError, first_line
from training.common.hub import check_model_path
from training.common.modelscope import local_path
from training.consts import BREAKER, CONTROL_TOKENS, END, PAD, TOOL
from training.text.encoding import answer_header
from training.text.saved_template import default_system, knows_tools
from training.text.template import RESPONSE_TEMPLATE, chat_template

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = ("tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")

# For the id of each token that a model lacks: the ids of the model's tokens from whose embedding rows its own
# starts, as their mean. Where there are none, it starts as the mean of all of the model's tokens.
NewTokens = dict[int, list[int]]


def load_tokenizer(path: str, system: str | None = None, *, tools: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a model directory or hub name, with the four control tokens, each one id.

    system: what its conversations without a system text get; where None, what they got before, or the intro.
    tools: whether it gets the control token of tools, too; one that has it keeps it. Raises UserError where
    there is no usable tokenizer.
    """
    return load_tokenizer_and_new_tokens(path, system, tools=tools)[0]


def load_tokenizer_and_new_tokens(
    path: str, system: str | None = None, *, adds_pad: bool = True, tools: bool = False
) -> tuple[PreTrainedTokenizerFast, NewTokens]:
    """The tokenizer of `load_tokenizer`, and the tokens of it that the one at `path` lacks.

    `load_model` and `add_adapter` take those as `new_tokens`, so that the tokenizer is read once. adds_pad:
    as for `teach_to_chat`.
    """
    tokenizer = load_base_tokenizer(path)
    return tokenizer, teach_to_chat(tokenizer, system, adds_pad=adds_pad, tools=tools)


def teach_to_chat(
    tokenizer: PreTrainedTokenizerFast,
    system: str | None = None,
    *,
    adds_pad: bool = True,
    tools: bool = False,
) -> NewTokens:
    """Give a tokenizer the control tokens and the chat template; return the tokens that it lacked.

    Tokens that are there keep their ids; missing control tokens get the next free ones. system, tools: as for
    `load_tokenizer`. Once saved, the tokenizer renders and tokenizes chats as training does, without our
    code. adds_pad: whether a tokenizer that lacks control tokens and has no pad token gets one too, so that
    other tools can make batches with it.
    """
    backend = tokenizer.backend_tokenizer
    control_tokens = (*CONTROL_TOKENS, TOOL) if tools or knows_tools(tokenizer) else CONTROL_TOKENS
    missing = [token for token in control_tokens if backend.token_to_id(token) is None]
    is_base = any(token in missing for token in CONTROL_TOKENS)
    pad = [PAD] if is_base and adds_pad and tokenizer.pad_token is None else []
    missing += [token for token in pad if backend.token_to_id(token) is None]
    eos = _eos_of(tokenizer)
    # The special tokens that were there must be matched, too, before the normalizer removes the breakers.
    found = tokenizer.added_tokens_decoder.values()
    late_tokens = [str(token) for token in found if token.special and token.normalized]
    special = (*late_tokens, *control_tokens, *pad)
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special], special_tokens=True
    )
    tokenizer.eos_token = END
    if pad:
        tokenizer.pad_token = PAD
    tokenizer.clean_up_tokenization_spaces = False
    if tokenizer("").input_ids:  # a bos that the text of a conversation does not have
        tokenizer.add_bos_token = tokenizer.add_eos_token = False
    _leave_spaces(tokenizer)
    _remove_breakers(tokenizer)
    system = system or default_system(tokenizer)
    has_tools = knows_tools(tokenizer)
    tokenizer.chat_template = chat_template(
        special_tokens(tokenizer), answer_header(tokenizer), system, tools=has_tools
    )
    if has_tools:
        tokenizer.response_template = RESPONSE_TEMPLATE
    ids = tokenizer.get_added_vocab()
    return _new_tokens(ids, missing, eos)


def _new_tokens(ids: Mapping[str, int], missing: Iterable[str], eos: Collection[int]) -> NewTokens:
    """`missing` with what their embedding rows start from: `<|End|>` from those of the base's eos token.

    The speakers start from the mean of all rows. Started from the pieces of "System", "Human" and
    "Assistant", SmolLM2-135M-Instruct took a conversation for a plain transcript: before any training, the
    held-out loss was 2.21 instead of 1.69, and that of `<|End|>` 12.7 instead of 1.0.
    """
    return {ids[token]: [*eos] if token == END else [] for token in sorted(missing, key=ids.__getitem__)}


def _eos_of(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The id of the token that ends texts and answers, or none.

    That is `</s>` for bloomz, and `<|im_end|>` or `<|eot_id|>` for instruct models, also where a
    generation_config lists more than one.
    """
    ids = tokenizer.get_vocab()
    return [ids[token] for token in [tokenizer.eos_token] if token in ids]


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Texts that the tokenizer takes for a single token wherever they stand, the control tokens included."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def load_base_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """The tokenizer at `path`, unchanged, as a PreTrainedTokenizerFast.

    A saved tokenizer of a class such as Qwen2Tokenizer would be loaded with that class's normalizer instead
    of ours. Raises UserError where there is no usable tokenizer.
    """
    check_model_path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(local_path(path), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no tokenizer that can be loaded ({first_line(error)})") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"{path}: its tokenizer has no fast version (tokenizer.json), which this recipe needs"
        )
    if type(tokenizer) is PreTrainedTokenizerFast:
        return tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        name_or_path=tokenizer.name_or_path,
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        extra_special_tokens=tokenizer.extra_special_tokens,
        **tokenizer.special_tokens_map,
    )


def new_tokens(path: str, tokenizer: PreTrainedTokenizerFast) -> NewTokens:
    """The tokens of `tokenizer` that the tokenizer at `path`, which is read for this, does not have."""
    base = load_base_tokenizer(path)
    known, ids = set(base.get_vocab().values()), tokenizer.get_vocab()
    return _new_tokens(ids, (token for token in ids if ids[token] not in known), _eos_of(base))


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: str | os.PathLike) -> None:
    """Write the tokenizer's files, so that transformers 4 and llama.cpp's converter read the same tokenizer.

    transformers 5 writes a name of the class and a list of special tokens that version 4 refuses. The
    converter goes by "add_bos_token" and "add_prefix_space", and without them by what Llama's own does.
    """
    tokenizer.save_pretrained(directory)
    if type(tokenizer) is not PreTrainedTokenizerFast:
        return
    path = Path(directory, TOKENIZER_CONFIG)
    config = json.loads(path.read_text(encoding="utf-8"))
    more_special = config.pop("extra_special_tokens", None)
    if more_special:
        config["additional_special_tokens"] = more_special  # both versions read it under this name
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": tokenizer.model_input_names,  # version 4 would add token_type_ids
        "add_bos_token": tokenizer.bos_token_id in tokenizer("").input_ids,
        "add_prefix_space": _puts_space_before(tokenizer),
    }
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _puts_space_before(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer puts a space before a text, as SentencePiece and byte-level BPE spell one."""
    tokens = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens
    return bool(tokens) and tokens[0].startswith(("▁", "Ġ"))


def spells_in_bytes(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer is one of SentencePiece's BPE, which spells unknown characters in bytes."""
    return getattr(tokenizer.backend_tokenizer.model, "byte_fallback", False)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash of the tokenizer as it was loaded, and of the bytes of the files that it came from."""
    digest = hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=16)
    for name in sorted({*TOKENIZER_FILES, *tokenizer.vocab_files_names.values()}):
        path = os.path.join(tokenizer.name_or_path, name)
        if not os.path.isdir(tokenizer.name_or_path):
            path = huggingface_hub.try_to_load_from_cache(tokenizer.name_or_path, name)
        if isinstance(path, str) and os.path.isfile(path):
            digest.update(name.encode() + Path(path).read_bytes())
    return digest.hexdigest()


def _leave_spaces(tokenizer: PreTrainedTokenizerFast) -> None:
    """Change the tokenizer so that it adds no space to a text, and removes none.

    SentencePiece puts a space before each text, and its decoder removes it again. Here every piece of a
    conversation would get one, though the whole text has at most one, at its start.
    """
    parts = ("normalizer", "pre_tokenizer", "decoder")
    found, shell = tokenizer.backend_tokenizer, Tokenizer(models.BPE())
    for part in parts:
        setattr(shell, part, getattr(found, part))
    plan = json.loads(shell.to_str())
    changed = plan | {part: _without_spaces(plan[part]) for part in parts}
    if changed != plan:
        shell = Tokenizer.from_str(json.dumps(changed))
        for part in parts:
            setattr(found, part, getattr(shell, part))


def _without_spaces(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer, pre-tokenizer or decoder, in the tokenizers library's JSON, without what adds spaces."""
    match part:
        case {"type": "Prepend"} | {"type": "Strip", "content": _}:
            return None
        case {"type": "Metaspace"}:
            return part | {"prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return part | {"add_prefix_space": False}
        case {"normalizers": _} | {"pretokenizers": _} | {"decoders": _}:
            (name,) = part.keys() - {"type"}
            return part | {name: [inner for inner in map(_without_spaces, part[name]) if inner]}
    return part


def _remove_breakers(tokenizer: PreTrainedTokenizerFast) -> None:
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is None:
        backend.normalizer = normalizers.Replace(BREAKER, "")
    elif backend.normalizer.normalize_str(BREAKER):
        backend.normalizer = normalizers.Sequence([normalizers.Replace(BREAKER, ""), backend.normalizer])
