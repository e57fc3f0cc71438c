"""Control tokens, the intro text, and the defaults that training and inference share."""

SYSTEM = "<|System|>"
HUMAN = "<|Human|>"
YAYI = "<|YaYi|>"
END = "<|End|>"

# In the order in which they get their ids where the tokenizer has none of them yet.
CONTROL_TOKENS = (SYSTEM, HUMAN, YAYI, END)

INTRO = (
    "A chat between a human and an AI assistant named YaYi.\n"
    "YaYi is a helpful and harmless language model developed by Beijing Wenge Technology Co.,Ltd."
)

# A private-use character. The chat template puts it inside a control token that somebody typed, so that the
# tokenizer does not take the text for the token; the tokenizer's normalizer removes it again.
BREAKER = "\ue000"

# Label of a token that has no loss: the ignore_index of torch's cross entropy.
NOT_SUPERVISED = -100

# The sampling of the original release.
TEMPERATURE = 0.3
REPETITION_PENALTY = 1.1
TOP_P = 1.0
MAX_NEW_TOKENS = 512

# Longest row in training unless told otherwise, and what a model reads whose configuration says nothing.
CONTEXT = 2048
