"""README is true: its commands and its code run, its tree exists, its numbers are the kept ones."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from benchmarks import demo
from tests.anchors import anchors
from ultramem.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_two_commands_are_targets_of_the_makefile():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    commands = re.findall(r"^make ([a-z-]+)", blocks("sh")[0], flags=re.MULTILINE)
    assert commands == ["demo", "test"]
    assert set(commands) <= set(targets)


def test_the_five_commands_run(tmp_path, monkeypatch):
    """As they stand, but that training is cut to two steps."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for line in blocks("sh")[1].splitlines()]
    assert [command[1] for command in commands] == ["prepare", "train", "eval", "generate", "export"]
    for program, name, *arguments in commands:
        assert program == "ultramem"
        if name == "train":
            arguments += ["--steps", "2", "--optimizer.warmup-steps", "1", "--evaluate-batches", "1"]
        if name == "generate":
            arguments += ["--max-new-tokens", "4"]
        assert main([name, *arguments]) in (0, None), name
    assert (tmp_path / "hf/a/model.safetensors").exists()


def test_the_code_runs():
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})


def test_the_tree_exists():
    tree = README.split("## The tree")[1].split("```")[1]
    # A name ends in .py or a slash, and stands at the start of a line or after a space.
    names = re.findall(r"(?<=\s)([a-z_]+(?:\.py|/))(?=\s)", tree)
    assert len(names) > 25
    paths = [*ROOT.iterdir(), *(ROOT / "ultramem").rglob("*"), *(ROOT / "benchmarks").rglob("*")]
    known = {path.name + ("/" if path.is_dir() else "") for path in paths}
    assert set(names) - known == set()


PROSE = re.sub(r"```.*?```", "", README, flags=re.DOTALL)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", PROSE))
def test_links_lead_somewhere(link):
    path, _, anchor = link.partition("#")
    target = ROOT / path if path else ROOT / "README.md"
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text())


def test_the_results_state_speed():
    comparison = {
        "tokens": 1,
        "recipes": [
            {
                "name": name,
                **dict.fromkeys(("parameters", "active_parameters", "flops_per_token"), 1),
                **{field: {"mean": 1.0} for field in ("validation_loss", "bits_per_byte")},
                "tokens_per_second": {"mean": speed},
            }
            for name, speed in (("cpu-dense", 1000.0), ("cpu-ultramem", 640.0))
        ],
    }
    about = dict.fromkeys(("hardware", "torch", "commit", "date"), "x")
    text = demo.table([row | about for row in demo.rows_of(comparison)])
    assert "UltraMem trains at 0.64 of the dense model's tokens/s" in text


def test_the_results_are_the_kept_ones():
    assert demo.fill(README, demo.table(demo.kept())) == README
