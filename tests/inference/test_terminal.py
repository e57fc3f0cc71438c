import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from inference.terminal import on_ctrl_c, read_inputs

ENTER, ALT_ENTER, CTRL_C, CTRL_D = "\r", "\x1b\r", "\x03", "\x04"


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[PipeInput]:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        yield keys


def test_enter_sends_and_alt_enter_starts_a_line(keyboard: PipeInput) -> None:
    keyboard.send_text(f"一{ALT_ENTER}二 😀{ENTER}three{ENTER}{CTRL_D}")
    assert list(read_inputs("Human: ")) == ["一\n二 😀", "three"]


def test_what_is_pasted_is_one_text(keyboard: PipeInput) -> None:
    lines = "\n".join(f"第 {number} 行" for number in range(200))
    keyboard.send_text(f"\x1b[200~{lines}\x1b[201~{ENTER}{CTRL_D}")
    assert list(read_inputs("Human: ")) == [lines]


def test_ctrl_c_discards_what_was_typed(keyboard: PipeInput) -> None:
    keyboard.send_text(f"discarded{CTRL_C}kept{ENTER}{CTRL_D}")
    assert list(read_inputs("Human: ")) == ["kept"]


def test_the_history_outlives_the_chat_and_is_the_users_own(keyboard: PipeInput, tmp_path: Path) -> None:
    keyboard.send_text(f"first{ENTER}{CTRL_D}")
    assert list(read_inputs("Human: ")) == ["first"]
    file = tmp_path / "yayi" / "chat_history"
    assert list(FileHistory(file).load_history_strings()) == ["first"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_where_no_history_can_be_kept_one_can_still_talk(keyboard: PipeInput, tmp_path: Path) -> None:
    (tmp_path / "yayi").write_text("a file")
    keyboard.send_text(f"first{ENTER}{CTRL_D}")
    assert list(read_inputs("Human: ")) == ["first"]


def test_ctrl_c_is_only_told_and_interrupts_again_afterwards() -> None:
    told = []
    with on_ctrl_c(lambda: told.append(1)):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert told == [1, 1]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
