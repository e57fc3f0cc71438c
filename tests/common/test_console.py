import io
import os
from collections.abc import Iterator

import click
import pytest

from training.common.console import say, visible
from training.common.errors import UserError, run_command


@click.command()
@click.option("--fails", is_flag=True)
def talkative(fails: bool) -> None:
    print("你好")
    say("再见")
    say("完成", on_stderr=True)
    if fails:
        raise UserError("坏")


@pytest.fixture
def nobody_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """stdout and stderr are pipes whose other ends are closed."""
    streams = []
    for name in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        streams.append(os.fdopen(writer, "w", encoding="utf-8"))
        monkeypatch.setattr("sys." + name, streams[-1])
    yield
    for stream in streams:
        stream.close()  # raises where something is still to be written


def status_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["talkative", *arguments])
    with pytest.raises(SystemExit) as exit_:
        run_command(talkative)
    return exit_.value.code or 0


def test_what_the_encoding_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding="ascii"))
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(err, encoding="ascii"))
    assert status_of(monkeypatch, "--fails") == 2
    assert out.getvalue() == rb"\u4f60\u597d" + b"\n" + rb"\u518d\u89c1" + b"\n"
    assert err.getvalue() == rb"\u5b8c\u6210" + b"\n" + rb"error: \u574f" + b"\n"


def test_what_would_steer_a_terminal_is_shown(capsys: pytest.CaptureFixture) -> None:
    steering = "\x1b]0;title\x07 \x9b2J\r\x7f\u202e"
    shown = r"\x1b]0;title\x07 \x9b2J\r\x7f\u202e"
    assert visible(steering) == shown
    assert visible("两行\n\ttab é 👩\u200d👧") == "两行\n\ttab é 👩\u200d👧"
    say(steering)
    assert capsys.readouterr().out == shown + "\n"


@pytest.mark.usefixtures("nobody_reads")
def test_lines_that_nobody_reads_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_of(monkeypatch) == 0


@pytest.mark.usefixtures("nobody_reads")
def test_a_mistake_keeps_its_status_where_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_of(monkeypatch, "--fails") == 2


def test_a_line_on_a_full_disk_is_lost_and_the_next_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            if "a" in text:
                raise OSError(28, "No space left on device")
            return super().write(text)

    log = Full()
    monkeypatch.setattr("sys.stdout", log)
    say("a")
    say("b")
    assert log.getvalue().replace("\n", "") == "b"
