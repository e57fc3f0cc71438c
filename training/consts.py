"""Control tokens, the intro text, and the defaults that training and inference share."""

SYSTEM = "<|System|>"
HUMAN = "<|Human|>"
YAYI = "<|YaYi|>"
END = "<|End|>"

# Those that a tokenizer lacks get their ids in this order.
CONTROL_TOKENS = (SYSTEM, HUMAN, YAYI, END)

# The fifth, before what a tool returned. Only models that were taught tools have it.
TOOL = "<|Tool|>"

# The pad token that a base without one gets; that of BLOOM has this name.
PAD = "<pad>"

INTRO = (
    "A chat between a human and an AI assistant named YaYi.\n"
    "YaYi is a helpful and harmless language model developed by Beijing Wenge Technology Co.,Ltd."
)

# A private-use character. The chat template puts it inside a control token that somebody typed, so that the
# tokenizer does not take the text for the token; the tokenizer's normalizer removes it again.
BREAKER = "\ue000"

# Label of a token that has no loss: the ignore_index of torch's cross entropy.
NOT_SUPERVISED = -100

# Sampling settings of the original release.
TEMPERATURE = 0.3
REPETITION_PENALTY = 1.1
TOP_P = 1.0
MAX_NEW_TOKENS = 512

# Tokens of the longest row in training by default, and the context of a model whose configuration names none.
CONTEXT = 2048
