"""The trainer, which tries its longest micro-batch before step 1 on a CPU too, and says so."""

from transformers import Trainer

from training import trainer
from training.common.errors import run_command
from training.run import trial
from training.run.trial import try_longest_batch


def tried(trainer: Trainer) -> int:
    """Try the longest micro-batch, and say so."""
    tokens = try_longest_batch(trainer)
    print(f"tried {tokens} tokens", flush=True)
    return tokens


if __name__ == "__main__":
    trial.is_wanted = lambda device: True
    trial.try_longest_batch = tried
    run_command(trainer.main)
