"""The trainer on a disk that takes a second for each save, so that a test can interrupt it there.

deepspeed --num_gpus=2 --module tests.slow_disk ...
"""

import time

from training import trainer
from training.common.errors import run_command
from training.run import checkpoints

SECONDS = 0.5


def slow_flush_all(directory, flush_all=checkpoints.flush_all) -> None:
    time.sleep(SECONDS)
    flush_all(directory)
    time.sleep(SECONDS)


if __name__ == "__main__":
    checkpoints.flush_all = slow_flush_all
    run_command(trainer.main)
