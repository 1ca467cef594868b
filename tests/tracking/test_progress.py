from __future__ import annotations

from sae_tools.tracking.progress import TokenProgress, duration
from tests.tracking.terminal import Clock, console


def test_speed_and_time_left_count_only_what_this_process_did():
    clock = Clock()
    progress = TokenProgress(2000, done=1000, console=console(False)[0], clock=clock)
    assert progress.text() == "50 %  1,000 of 2,000 tokens"
    clock.now += 2
    progress.update(1500)
    assert progress.text() == "75 %  1,500 of 2,000 tokens  250 tokens/s  0:02 left"
    progress.record({"step": 1, "dictionaries": {"acts": {"fvu": 0.25}, "up": {"fvu": None}, "logits": {"fvu": 0.125}}})
    assert progress.text().endswith("  FVU acts 0.250, logits 0.125")
    clock.now += 2
    progress.record({"loss": 3.14159})
    progress.update(2000)
    assert progress.text() == "100 %  2,000 of 2,000 tokens  250 tokens/s  in 0:04  loss 3.142"


def test_without_a_terminal_a_line_now_and_then():
    clock = Clock()
    screen, out = console(False)
    with TokenProgress(10_000, console=screen, clock=clock) as progress:
        for tokens in range(100, 10_100, 100):
            clock.now += 1
            progress.update(tokens)
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        f"{n:,} of 10,000 tokens" for n in (3000, 6000, 9000, 10_000)
    ]  # every 30 s and at the end
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_a_bar_and_at_the_end_one_line():
    screen, out = console(True)
    with TokenProgress(1000, console=screen) as progress:
        progress.update(400)
    last = out.getvalue().rstrip().split("\n")[-1]
    assert "━" in out.getvalue() and "━" not in last and "40 %  400 of 1,000 tokens" in last


def test_work_that_never_began_says_nothing():
    screen, out = console(False)
    with TokenProgress(1000, done=1000, console=screen):
        pass
    assert out.getvalue() == ""


def test_durations():
    assert [duration(s) for s in (0.4, 59.6, 3599, 3600, 90061)] == ["0:00", "1:00", "59:59", "1:00:00", "25:01:01"]
