from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from diml.training.interrupts import InterruptHandler, TrainingStopped


def press(times: int = 1, number: int = signal.SIGINT) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _hang_up_is_not_ignored():
    """As in a process that was started with nohup, which a test run may be."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_current_step_is_finished(number):
    handler = InterruptHandler(immediate=True)
    with handler.installed():
        with handler.protected():
            press(number=number)
            finished = True
        assert finished
        assert handler.requested


def test_outside_of_a_step_it_stops_immediately():
    handler = InterruptHandler(immediate=True)
    with handler.installed(), pytest.raises(KeyboardInterrupt):
        press()


def test_several_processes_only_set_the_flag():
    handler = InterruptHandler(immediate=False)
    with handler.installed():
        press(2)
        assert handler.requested


def test_the_third_signal_is_not_postponed():
    handler = InterruptHandler(immediate=False)
    with handler.installed(), handler.protected(), pytest.raises(KeyboardInterrupt):
        press(3)
    assert handler.torn


def test_between_two_steps_nothing_is_torn():
    handler = InterruptHandler(immediate=False)
    with handler.installed():
        with handler.protected():
            press(2)
        with pytest.raises(KeyboardInterrupt):
            press()
    assert not handler.torn


def test_nohup_is_respected():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handler = InterruptHandler(immediate=True)
    with handler.installed():
        press(number=signal.SIGHUP)
    assert not handler.requested


def test_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with InterruptHandler(immediate=True).installed():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_of_the_main_thread_nothing_changes():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with InterruptHandler(immediate=True).installed():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_message_says_how_to_resume():
    stopped = TrainingStopped(Path("runs/mine"), 12)
    assert str(stopped) == (
        "stopped after step 12; the checkpoint is saved. Resume with: diml train --resume --output runs/mine"
    )
    torn = TrainingStopped(Path("runs/mine"), 12, saved=False)
    assert str(torn) == (
        "stopped at once after step 12; the checkpoint before it is left as it was. Resume with: diml train --resume "
        "--output runs/mine"
    )
    assert isinstance(stopped, KeyboardInterrupt)
