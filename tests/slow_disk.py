"""The trainer on a disk that takes a second for each save, so that a test can interrupt it there.

deepspeed --num_gpus=2 --module tests.slow_disk ...
"""

import time

from training import checkpointing, trainer
from training.errors import run_command

SECONDS = 0.5


def slow_flush_all(directory, flush_all=checkpointing.flush_all) -> None:
    time.sleep(SECONDS)
    flush_all(directory)
    time.sleep(SECONDS)


if __name__ == "__main__":
    checkpointing.flush_all = slow_flush_all
    run_command(trainer.main)
