"""SIGTERM and SIGHUP end a command as Ctrl-C does; real processes are in tests/end_to_end/test_stopping.py."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from diml.cli import main
from diml.cli.datasets import DatasetsCommand
from diml.cli.signals import stopping_like_ctrl_c

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _handlers():
    """A process that was started with nohup, as a test run may be, ignores SIGHUP."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_command_ends_in_one_line(number, monkeypatch, capsys):
    monkeypatch.setattr(DatasetsCommand, "run", lambda _: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert main(["datasets"]) == 130
    assert capsys.readouterr().err == "diml datasets: interrupted; every file that was finished is complete\n"
    assert signal.getsignal(number) is before


def test_a_closed_terminal_is_no_error(monkeypatch):
    def gone(*_args, **_options):
        raise OSError(5, "Input/output error")

    def hang_up(_):
        monkeypatch.setattr("builtins.print", gone)
        os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(DatasetsCommand, "run", hang_up)
    assert main(["datasets"]) == 130


def test_nohup_is_respected():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stopping_like_ctrl_c():
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_outside_of_the_main_thread_nothing_changes():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with stopping_like_ctrl_c():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
