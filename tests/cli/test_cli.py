"""The program as a whole: help, exit codes, one line for the user's mistake."""

import json
import math
import subprocess
import sys
from io import StringIO

import pytest

from ultramem.cli import COMMANDS, main
from ultramem.plots import nice_ticks


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    output, errors = capsys.readouterr()
    return code, output, errors


def assert_one_line(code, errors, *words):
    assert code == 2
    (line,) = errors.splitlines()
    assert line.startswith("ultramem: ")
    for word in words:
        assert word in line


def test_help_lists_the_commands(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        code, output, _ = run(capsys, *arguments)
        assert code == 0
        assert all(name in output for name in COMMANDS)


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from ultramem.cli import main; main(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'tyro', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"\nultramem {command} " in capsys.readouterr().out


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "ultramem", "inf"], capture_output=True, text=True, check=False)
    assert_one_line(done.returncode, done.stderr, "'inf' is not a command", "did you mean info?")


def test_an_unknown_command(capsys):
    code, _, errors = run(capsys, "zzz")
    assert_one_line(code, errors, "zzz", "train")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "cpu-dense", "--data", "d", "--out", "o", "--step", "3"], ["--step:", "--steps"]),
        (["train", "cpu-dense", "--data", "d", "--out", "o", "--learning_rate=3"], ["--optimizer.learning-rate?"]),
        (["train", "cpu-dense", "--dat", "d", "--out", "o"], ["--dat:", "--data"]),
        (["train", "cpu-dense", "--data", "d", "--out", "o", "--zzz"], ["--zzz", "ultramem train --help"]),
        (["train", "cpu-dense", "--data", "d"], ["Missing", "--out PATH", "Folder of the run"]),
        (["train"], ["RECIPE", "--data PATH", "--out PATH"]),
        (["train", "cpu-dense", "--data", "d", "--out", "o", "--steps", "many"], ["--steps", "'many'", "INT"]),
        (["train", "cpu-dense", "--data", "d", "--out", "o", "--optimizer.clip-norm", "x"], ["'x'", "FLOAT", "norm"]),
        (["train", "cpu-dense", "--data", "d", "--out", "o", "--optimizer.betas", "1"], ["--optimizer.betas", "2"]),
        (["train", "cpu-dense", "--data", "d", "--out", "o", "more"], ["more"]),
        (["export", "runs/a", "--out", "o", "--dtype", "fp8"], ["--dtype", "fp8", "bfloat16"]),
        (["generate", "runs/a", "--prompt", "a", "--top-p"], ["--top-p"]),
    ],
)
def test_a_mistaken_flag_is_one_line(capsys, arguments, words):
    code, output, errors = run(capsys, *arguments)
    assert not output
    assert_one_line(code, errors, *words)
    assert "helptext" not in errors


def test_a_mistaken_flag_is_one_line_at_a_narrow_terminal_with_colours(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code, _, errors = run(capsys, "eval", "runs/a", "--limit", "x")
    assert_one_line(code, errors, "--limit", "'x'", "INT", "Questions of each task; none for all.")
    assert "\x1b" not in errors


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.memory-expansion", "3"], ["memory_expansion", "3", "square"]),
        (["--model.memory-value-size", "7"], ["memory_value_size", "7", "divisible"]),
        (["--model.memory-top-k", "70000"], ["memory_top_k", "70000"]),
        (["--model.memory-units", "4:2"], ["4:2", "backwards"]),
        (["--model.ffn", "relu"], ["ffn", "relu", "swiglu"]),
        (["--optimizer.learning-rate", "-1"], ["optimizer.learning_rate", "-1"]),
        (["--steps", "0"], ["steps", "0"]),
        (["--batch-size", "2", "--micro-batch-size", "3"], ["micro_batch_size", "3", "batch_size"]),
        (["--sequence-length", "100000"], ["sequence_length", "100000", "max_position_embeddings"]),
    ],
)
def test_impossible_settings_are_one_line(capsys, prepared, tmp_path, flags, words):
    code, _, errors = run(capsys, "train", "cpu-ultramem", "--data", prepared, "--out", tmp_path / "run", *flags)
    assert_one_line(code, errors, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "cpu-ultramm", "--data", "{data}", "--out", "{new}"], ["cpu-ultramm", "cpu-ultramem"]),
        (["train", "cpu-dense", "--data", "{new}", "--out", "{new}/run"], ["{new}"]),
        (["train", "cpu-dense", "--data", "{data}", "--out", "{new}", "--config", "{new}.json"], ["{new}.json"]),
        (["train", "cpu-dense", "--data", "{data}", "--out", "{text}"], ["{text}"]),
        (["compare", "cpu-dense", "cpu-dense", "--data", "{data}", "--out", "{new}"], ["each once"]),
        (["eval", "{run}"], ["--data", "--tasks"]),
        (["eval", "{new}", "--data", "{data}"], ["{new}"]),
        (["eval", "{run}", "--data", "{new}"], ["{new}"]),
        (["eval", "{run}", "--data", "{data}", "--out", "{text}"], ["{text}", "exists"]),
        (["generate", "{new}", "--prompt", "a"], ["{new}"]),
        (["generate", "{run}", "--prompt", "the row " * 100], ["prompt", "48"]),
        (["generate", "{run}", "--prompt", "a", "--top-p", "2"], ["top_p", "2"]),
        (["export", "{new}", "--out", "{new}2"], ["{new}"]),
        (["export", "{run}", "--out", "{run}"], ["{run}", "exists"]),
        (["info", "cpu-ultramm"], ["cpu-ultramm", "cpu-ultramem"]),
        (["info", "cpu-dense", "--context", "0"], ["context", "0"]),
        (["prepare", "{new}", "--out", "{new}2"], ["{new}"]),
        (["prepare", "{text}", "--out", "{data}"], ["{data}"]),
    ],
)
def test_the_users_mistake_is_one_line(capsys, prepared, trained, tmp_path, arguments, words):
    text = tmp_path / "note.txt"
    text.write_text("mine")
    places = {"data": prepared, "run": trained, "new": tmp_path / "new", "text": text}
    code, _, errors = run(capsys, *(argument.format(**places) for argument in arguments))
    assert_one_line(code, errors, *(word.format(**places) for word in words))
    assert text.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.txt"]


def test_a_bug_in_our_code_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("ultramem.cli.info.list_recipes", lambda: nice_ticks(math.nan, 1.0))
    with pytest.raises(ValueError, match="NaN"):
        main(["info"])


def test_a_bug_outside_our_code_keeps_its_traceback(monkeypatch):
    def broken():
        raise ValueError("not for the user")

    monkeypatch.setattr("ultramem.cli.info.list_recipes", broken)
    with pytest.raises(ValueError, match="not for the user"):
        main(["info"])


def test_a_full_disk_is_one_line(capsys, monkeypatch, trained, tmp_path):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr("ultramem.cli.export.export", full)
    code, _, errors = run(capsys, "export", trained, "--out", tmp_path / "hf")
    assert_one_line(code, errors, "No space left on device", str(tmp_path / "x"))


def test_interrupting_is_quiet(capsys, monkeypatch, trained):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ultramem.cli.info.list_recipes", interrupted)
    assert run(capsys, "info") == (130, "", "")


def test_info_of_recipes(capsys):
    code, output, _ = run(capsys, "info")
    assert code == 0
    assert "ultramem-151m-x12" in output
    code, output, _ = run(capsys, "info", "ultramem-1.6b-x12")
    assert code == 0
    for words in ("21.4G", "1.75G", "3.501G", "FLOPs a token", "GiB", "2,048"):
        assert words in output


def test_info_of_many_processes(capsys):
    code, output, _ = run(capsys, "info", "ultramem-1.6b-x12", "--world", "64")
    assert code == 0
    for words in (
        "each of 64 processes",
        "tables (columns)",
        "4.578 GiB",
        "32 sequences of 2,048 tokens",
        "sends a step",
    ):
        assert words in " ".join(output.split())
    _, slower, _ = run(capsys, "info", "ultramem-1.6b-x12", "--world", "64", "--network-bandwidth", "25")
    assert slower != output


def test_info_of_impossible_processes_is_one_line(capsys):
    for flags, words in (
        (["--world", "3"], ["batch_size is 2048", "3 processes"]),
        (["--world", "0"], ["--world is 0"]),
        (["--world", "8", "--node-bandwidth", "0"], ["node_bandwidth is 0"]),
    ):
        code, _, errors = run(capsys, "info", "ultramem-1.6b-x12", *flags)
        assert_one_line(code, errors, *words)


def test_info_of_a_run(capsys, trained):
    code, output, _ = run(capsys, "info", trained, "--context", "16")
    assert code == 0
    assert "context of 16 tokens" in output
    code, output, _ = run(capsys, "info", trained, "--world", "2")
    assert code == 0
    assert "each of 2 processes" in output


def test_compare_reports(capsys, prepared, tmp_path, tiny_settings):
    code, output, _ = run(
        capsys,
        "compare",
        "cpu-dense",
        "cpu-moe",
        "--data",
        prepared,
        "--out",
        tmp_path / "c",
        "--config",
        tiny_settings,
    )
    assert code == 0
    assert "cpu-moe" in output
    assert str(tmp_path / "c" / "report.html") in output.replace("\n", "")
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["recipes"]
    assert (tmp_path / "c" / "report.html").exists()


def test_eval_writes_json(capsys, prepared, trained, tmp_path):
    code, output, _ = run(capsys, "eval", trained, "--data", prepared, "--out", tmp_path / "deep" / "results.json")
    assert code == 0
    assert "bits_per_byte" in output
    saved = json.loads((tmp_path / "deep" / "results.json").read_text())
    assert saved["text"]["validation_loss"] > 0
    assert saved["text"]["memory"]


def test_generate_continues_every_prompt(capsys, trained):
    code, output, _ = run(capsys, "generate", trained, "--prompt", "The row", "The key", "--max-new-tokens", "3")
    assert code == 0
    assert output.startswith("The row")
    assert "\nThe key" in output


@pytest.mark.parametrize("arguments", [[], ["--prompt", "-"]])
def test_generate_reads_standard_input(capsys, trained, monkeypatch, arguments):
    monkeypatch.setattr("sys.stdin", StringIO("The table\n"))
    code, output, _ = run(capsys, "generate", trained, *arguments, "--max-new-tokens", "3")
    assert code == 0
    assert output.startswith("The table")


def test_generate_without_prompt_at_a_terminal_asks_for_one(capsys, trained, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    code, _, errors = run(capsys, "generate", trained)
    assert_one_line(code, errors, "--prompt")


def test_export_says_where(capsys, trained, tmp_path):
    code, output, _ = run(capsys, "export", trained, "--out", tmp_path / "hf", "--dtype", "bfloat16")
    assert code == 0
    assert output.strip() == str(tmp_path / "hf")


def test_prepare_takes_several_inputs(capsys, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": f"{name} {n} " * 30}) + "\n" for n in range(30))
        )
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    flags = ["--out", tmp_path / "data", "--vocab-size", 270, "--validation-fraction", 0.2]
    assert run(capsys, "prepare", *inputs, *flags)[0] == 0
    header = json.loads((tmp_path / "data" / "header.json").read_text())
    assert sum(split["num_documents"] for split in header["splits"].values()) == 60
