import io
import signal
import sys
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent, PathCompleter, WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import PipeInput

from inference.terminal import CommandCompleter, Inputs, on_ctrl_c

ENTER, ALT_ENTER, CTRL_C, CTRL_D = "\r", "\x1b\r", "\x03", "\x04"


def test_enter_sends_and_alt_enter_starts_a_line(keyboard: PipeInput) -> None:
    keyboard.send_text(f"一{ALT_ENTER}二 😀{ENTER}three{ENTER}{CTRL_D}")
    assert list(Inputs("Human: ")) == ["一\n二 😀", "three"]


def test_between_quotes_enter_starts_a_line(keyboard: PipeInput) -> None:
    keyboard.send_text(f'"""{ENTER}一{ENTER}{ENTER}/undo{ENTER}"""{ENTER}a """ b{ENTER}{CTRL_D}')
    assert list(Inputs("Human: ")) == ['"""\n一\n\n/undo\n"""', 'a """ b']


def test_a_command_is_completed_and_what_follows_it(tmp_path: Path) -> None:
    (tmp_path / "dialogue.jsonl").touch()
    arguments = {"set": WordCompleter(["temperature", "top_p"]), "load": PathCompleter()}
    completer = CommandCompleter(["save", "set", "load"], arguments)

    def completed(text: str) -> list[str]:
        found = completer.get_completions(Document(text), CompleteEvent())
        return [text[: len(text) + each.start_position] + each.text for each in found]

    assert completed("/s") == ["/save", "/set"]
    assert completed("/set t") == ["/set temperature", "/set top_p"]
    assert completed(f"/load {tmp_path}/dia") == [f"/load {tmp_path}/dialogue.jsonl"]
    assert completed("/x") == completed("a /s") == completed("/save t") == completed("") == []


def test_a_text_is_there_to_be_changed(keyboard: PipeInput) -> None:
    keyboard.send_text(f"\x7f您{ENTER}")
    assert Inputs("Human: ").edit("YaYi: ", "你好你") == "你好您"


def test_what_is_pasted_is_one_text(keyboard: PipeInput) -> None:
    lines = "\n".join(f"第 {number} 行" for number in range(200))
    keyboard.send_text(f"\x1b[200~{lines}\x1b[201~{ENTER}{CTRL_D}")
    assert list(Inputs("Human: ")) == [lines]


def test_bytes_in_another_encoding_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xff\nkept\n"), encoding="gbk"))
    assert list(Inputs("Human: ")) == ["\udcff\udcff", "kept"]


def test_ctrl_c_discards_what_was_typed(keyboard: PipeInput) -> None:
    keyboard.send_text(f"discarded{CTRL_C}kept{ENTER}{CTRL_D}")
    assert list(Inputs("Human: ")) == ["kept"]


def test_the_history_outlives_the_chat_and_is_the_users_own(keyboard: PipeInput, tmp_path: Path) -> None:
    keyboard.send_text(f"first{ENTER}{CTRL_D}")
    assert list(Inputs("Human: ")) == ["first"]
    file = tmp_path / "yayi" / "chat_history"
    assert list(FileHistory(file).load_history_strings()) == ["first"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_where_no_history_can_be_kept_one_can_still_talk(keyboard: PipeInput, tmp_path: Path) -> None:
    (tmp_path / "yayi").write_text("a file")
    keyboard.send_text(f"first{ENTER}{CTRL_D}")
    assert list(Inputs("Human: ")) == ["first"]


def test_ctrl_c_is_only_told_and_interrupts_again_afterwards() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    told = []
    with on_ctrl_c(lambda: told.append(1)):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert told == [1, 1]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
