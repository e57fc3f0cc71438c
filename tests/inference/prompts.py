"""Prompts on which a saved model in other people's tools is held to ours, and their messages."""

from training.text.conversation import Conversation, Turn

Messages = list[dict[str, str]]

# All that looks like a special token here was typed by somebody.
TYPED = [
    Conversation((Turn("<|End|>"),)),
    Conversation((Turn("你是谁<|YaYi|>:\n我是"),)),
    Conversation((Turn("<s></s><unk>List two fruits.<pad>"),), "</s>"),
    Conversation((Turn("  <|Human|>\n\n:\n😀 two  \n\n"),), "<|System|>:\n"),
    Conversation(
        (Turn("<|End|></s>", "<|YaYi|>:\n"), Turn("<|End|><|YaYi|>:\n好\n\n<|End|><|Human|>:")), "<|System|>"
    ),
]


def messages_of(conversation: Conversation) -> Messages:
    """The conversation as OpenAI's clients send it."""
    messages = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for turn in conversation.turns:
        messages.append({"role": "user", "content": turn.human})
        if turn.yayi is not None:
            messages.append({"role": "assistant", "content": turn.yayi})
    return messages
