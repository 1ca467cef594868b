"""What stands around the code: public names, the lock, the make targets, the README's commands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import sae_tools
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_importing_the_package_leaves_torch_out():
    code = """
import sys, sae_tools
from sae_tools import load_config, JobConfig, UserError
heavy = {"torch", "transformers", "transformer_lens", "datasets", "sae_lens", "numpy", "wandb"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sae_tools._HOME)
def test_public_names_are_there(name: str):
    assert getattr(sae_tools, name) is not None and name in dir(sae_tools)


def test_type_checkers_see_the_same_names_in_the_same_places():
    tree = ast.parse(Path(sae_tools.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {a.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert seen == sae_tools._HOME
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        sae_tools.nonsense  # noqa: B018


def test_the_lock_pins_everything_exactly_and_names_no_place():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pins = {}
    for line in lines:
        line, _, platform = line.partition("; ")
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line  # no +cpu, no address, no option
        assert platform in ("", 'platform_system == "Linux"')
        name, version = line.split("==")
        pins[name.lower().replace("_", "-")] = version
    assert pins["torch"] == "2.13.0" and pins["transformer-lens"] == "3.9.0" and pins["sae-lens"] == "6.54.12"
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["saelens"]]
    asked += [line for line in PROJECT["optional-dependencies"]["dev"] if not line.startswith("sae-tools")]
    for requirement in map(Requirement, asked):
        pinned = pins[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(pinned), f"{requirement} but the lock has {pinned}"


def imported_packages() -> set[str]:
    """What the package's files import from outside the standard library and themselves."""
    names = set()
    for path in (ROOT / "sae_tools").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"sae_tools"}


def test_every_dependency_is_used_declared_and_has_its_reason():
    declared = {Requirement(line).name for line in PROJECT["dependencies"]}
    optional = {"sae_lens", "triton"}  # triton comes with the builds of torch that need it
    distributions = {"yaml": "pyyaml"}
    assert {distributions.get(name, name) for name in imported_packages()} - optional == declared
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for name in declared | optional:
        assert f"`{name}`" in contributing, name


def test_the_commands_exist():
    installed = {
        point.name: point.value for point in entry_points(group="console_scripts") if "sae_tools" in point.value
    }
    assert installed == PROJECT["scripts"]
    for point in entry_points(group="console_scripts"):
        if point.name in installed:
            assert callable(point.load())


def commands_of(text: str) -> list[list[str]]:
    """The words of every indented or fenced line that begins like a command of ours."""
    found = []
    for line in text.splitlines():
        words = line.strip().removeprefix("$ ").split()
        if (
            words
            and (words[0] == "make" or Path(words[0]).name in PROJECT["scripts"])
            and line[:1] in (" ", "s", "m", ".")
        ):
            found.append(words)
    return found


def test_the_readme_says_only_what_there_is():
    commands = commands_of(README)
    assert ["make", "quickstart"] in commands
    for words in commands:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE), words
        for word in words[1:]:
            if word.startswith("configs/"):
                assert (ROOT / word).is_file(), word
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_ci_runs_what_contributors_run():
    script = (ROOT / ".ci" / "run").read_text()
    assert "make lint" in script and "make test" in script and "set -euo pipefail" in script
