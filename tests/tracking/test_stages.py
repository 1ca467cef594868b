from __future__ import annotations

from sae_tools.tracking.stages import StageProgress
from tests.tracking.terminal import Clock, console


def test_speed_and_time_left_are_of_the_stage():
    clock = Clock()
    progress = StageProgress({"reading": "tokens"}, console=console(False)[0], clock=clock)
    progress.update("reading", 1000, 4000)
    assert progress.text() == "reading  25 %  1,000 of 4,000 tokens"
    clock.now += 2
    progress.update("reading", 2000, 4000)
    assert progress.text() == "reading  50 %  2,000 of 4,000 tokens  500 tokens/s  0:04 left"
    progress.update("packing", 0, 10)
    assert progress.text() == "packing  0 %"
    clock.now += 1
    progress.update("packing", 5, 10)
    assert progress.text() == "packing  50 %  0:01 left"
    progress.update("nothing", 0, 0)
    assert progress.text() == "nothing  0 %"


def test_without_a_terminal_a_line_at_each_stage_and_every_ten_seconds():
    clock = Clock()
    screen, out = console(False)
    with StageProgress(console=screen, clock=clock) as progress:
        for done in range(26):
            progress.update("reading", done, 25)
            clock.now += 1
        progress.update("packing", 0, 3)
        progress.update("packing", 1, 3)
    lines = [line.split("  ")[:2] for line in out.getvalue().splitlines()]
    assert lines == [["reading", "0 %"], ["reading", "40 %"], ["reading", "80 %"], ["packing", "0 %"]]
    assert "\x1b" not in out.getvalue()


def test_a_terminal_shows_a_bar():
    screen, out = console(True)
    with StageProgress({"reading": "tokens"}, console=screen) as progress:
        progress.update("reading", 30, 100)
        assert progress._bar is not None
        progress._bar.refresh()
    assert "reading  30 %  30 of 100 tokens" in out.getvalue()
