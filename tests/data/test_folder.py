import os

import pytest

from ultramem.data.errors import DataError
from ultramem.data.folder import leftovers, whole_folder


def test_a_folder_appears_when_it_is_whole(tmp_path):
    out = tmp_path / "deep" / "data.v1"
    with whole_folder(out) as folder:
        (folder / "a").write_text("content")
        assert not out.exists()
        assert leftovers(out) == [folder]
    assert (out / "a").read_text() == "content"
    assert leftovers(out) == []
    assert os.listdir(out.parent) == ["data.v1"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(tmp_path, error):
    def fail():
        with whole_folder(tmp_path / "data") as folder:
            (folder / "a").write_text("content")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_another_made_meanwhile_is_kept(tmp_path):
    out = tmp_path / "data"

    def lose_the_race():
        with whole_folder(out) as folder:
            (folder / "a").write_text("ours")
            out.mkdir()
            (out / "a").write_text("theirs")

    with pytest.raises(DataError, match=r"cannot write .*data: .*not empty"):
        lose_the_race()
    assert (out / "a").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["data"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match=r"cannot write .*file/data: Not a directory"),
        whole_folder(tmp_path / "file/data"),
    ):
        pass
