"""The README's Python, run as it is printed."""

from __future__ import annotations

import re
from typing import Any

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_from_python(capsys):
    code = [line.removeprefix("    ") for line in section("From Python").splitlines() if line[:4] in ("    ", "")]
    names: dict[str, Any] = {}
    exec(compile("\n".join(code), "README.md", "exec"), names)
    assert names["trained"].metrics[-1]["fvu"] < 0.4
    run = names["run"]
    assert run.logits.shape[:2] == run.features.shape[:2] == run.tokens.shape and run.features.shape[2] == 1024
    assert "torch.Size([5, 1024])" in capsys.readouterr().out


def test_what_it_names_is_public():
    import sae_tools

    for name in ("train", "run_with_dictionary", "measure_dictionary", "measure_fidelity", "build_report", "run_job"):
        assert f"`{name}" in section("From Python") and hasattr(sae_tools, name)
