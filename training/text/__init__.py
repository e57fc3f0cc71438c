"""The text of a conversation: rows, the rendered text, token ids with labels, the tokenizer."""
