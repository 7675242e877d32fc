from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from diml.training.stopping import Stop, TrainingStopped


def press(times: int = 1, number: int = signal.SIGINT) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_step_under_way_is_finished(number):
    stop = Stop(at_once=True)
    with stop.listening():
        with stop.later():
            press(number=number)
            finished = True
        assert finished
        assert stop.asked


def test_outside_of_a_step_it_stops_at_once():
    stop = Stop(at_once=True)
    with stop.listening(), pytest.raises(KeyboardInterrupt):
        press()


def test_processes_that_work_together_only_make_a_note():
    stop = Stop(at_once=False)
    with stop.listening():
        press(2)
        assert stop.asked


def test_the_third_time_it_is_not_held_back():
    stop = Stop(at_once=False)
    with stop.listening(), stop.later(), pytest.raises(KeyboardInterrupt):
        press(3)


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Stop(at_once=True).listening():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_of_the_main_thread_nothing_changes():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with Stop(at_once=True).listening():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_it_says_how_to_go_on():
    stopped = TrainingStopped(Path("runs/mine"), 12)
    assert str(stopped) == "stopped after step 12, and saved; go on with: diml train --resume --output runs/mine"
    assert isinstance(stopped, KeyboardInterrupt)
