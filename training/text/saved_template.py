"""What a tokenizer's own chat template renders: the default system text, and whether it is our text.

Both are read from rendered dialogues, since the text of the template may change from version to version.
"""

import functools

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from training.consts import BREAKER, CONTROL_TOKENS, HUMAN, INTRO, SYSTEM, TOOL
from training.text.calls import call_text, declaration
from training.text.template import CLOSING, COLON, OPENING, render
from training.text.turns import Conversation, ToolUse, Turn
from training.text.written import chat_messages, tool_objects

# The dialogues by which a chat template is judged: prompts, and one with all its answers.
_TYPED = " ".join(CONTROL_TOKENS)
DIALOGUES = (
    Conversation((Turn("你是谁"),)),
    Conversation((Turn(" 1 + 1?\n", "\t2\n"), Turn(_TYPED, f"'{_TYPED}'。"), Turn("a\n\nb"))),
    Conversation((Turn("你好", ":您好 "), Turn("q", "a")), f"\n{_TYPED}\n\n你是一名记者。"),
)

# By this one, too, the template of a model that was taught tools.
_CALLS = tuple(call_text(name, {_TYPED: name}) for name in ("a</", "b"))
WITH_TOOLS = Conversation(
    (
        Turn("q", "a", tool_uses=(ToolUse(_CALLS, (_TYPED, ""), "c"),)),
        Turn("q", tool_uses=(ToolUse(_CALLS[:1], ("r",)),)),
    ),
    tools=(declaration({"name": "a</"}), declaration({"name": "b", "parameters": {"type": _TYPED}})),
)


def default_system(tokenizer: PreTrainedTokenizerFast) -> str:
    """The system text that its chat template gives to a dialogue without one.

    Where there is no template, or none of this recipe, that is the intro of the original release.
    """
    return _read_default_system(tokenizer, str(tokenizer.chat_template)) or INTRO


def knows_tools(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the model of this tokenizer was taught tools, or is about to be: it has their control token."""
    return tokenizer.backend_tokenizer.token_to_id(TOOL) is not None


def is_of_this_recipe(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether its chat template renders dialogues as training does, whatever the default system text is.

    A prompt may end after the colon or after the newline that follows it: the texts are the same.
    """
    system = _read_default_system(tokenizer, str(tokenizer.chat_template))
    if not system:
        return False
    for dialogue in (*DIALOGUES, WITH_TOOLS) if knows_tools(tokenizer) else DIALOGUES:
        expected = render(dialogue, system)
        if _rendered(tokenizer, dialogue) not in (expected, expected + OPENING * dialogue.is_prompt):
            return False
    return True


@functools.lru_cache(maxsize=8)
def _read_default_system(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> str:
    """The text between what stands before and after a system text, or "" where that is not this recipe's.

    chat_template: the tokenizer's, with which the text may change.
    """
    before, after = f"{SYSTEM}{COLON}{OPENING}", f"{CLOSING}{HUMAN}{COLON}{OPENING}q{CLOSING}"
    text = _rendered(tokenizer, Conversation((Turn("q"),)))
    start, found, _ = text.rpartition(after)
    return start.removeprefix(before) if found and start.startswith(before) else ""


def _rendered(tokenizer: PreTrainedTokenizerFast, dialogue: Conversation) -> str:
    """The text that the model sees, or "" where there is no template, or one that cannot render this."""
    if not tokenizer.chat_template:
        return ""
    try:
        text = tokenizer.apply_chat_template(
            chat_messages(dialogue),
            tools=tool_objects(dialogue) or None,
            tokenize=False,
            add_generation_prompt=dialogue.is_prompt,
        )
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError):  # what others' code raises
        return ""
    assert isinstance(text, str), "it is not tokenized"
    return text.replace(BREAKER, "")
