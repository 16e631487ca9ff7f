import json

import pytest

from tests.conftest import tiny
from ultramem.train.config_json import config_to_dict


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory):
    """A file for `--config` that makes any recipe of the cpu family tiny."""
    config = config_to_dict(tiny("cpu-dense"))
    model = {name: value for name, value in config["model"].items() if name not in ("ffn", "memory", "memory_units")}
    own = {name: value for name, value in config.items() if name not in ("name", "model", "optimizer", "seed")}
    file = tmp_path_factory.mktemp("settings") / "tiny.json"
    file.write_text(json.dumps({**own, "optimizer": {"warmup_steps": None}, "model": model}))
    return file
