"""The text of a conversation, once: rows, the rendered text, token ids with labels, the tokenizer."""
