import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_plain_loop_learns_to_count(capsys):
    runpy.run_path(str(EXAMPLES / "plain_loop.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1] == str(list(range(13)))
