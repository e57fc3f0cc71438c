from pathlib import Path

import pytest

from training.common.errors import UserError
from training.common.hub import ADAPTER_CONFIG, check_base_model, check_model_path, is_adapter


@pytest.mark.parametrize("path", ["./nope", "/nope", "~/nope", "a/b/c"])
def test_a_path_that_is_not_there_is_no_model(path: str) -> None:
    with pytest.raises(UserError, match="no such model directory"):
        check_model_path(path)


def test_a_directory_is_a_model_by_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without config\.json"):
        check_model_path(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    check_model_path(str(tmp_path))
    check_base_model(str(tmp_path))
    assert not is_adapter(str(tmp_path))


def test_an_adapter_is_a_model_but_no_base(tmp_path: Path) -> None:
    (tmp_path / ADAPTER_CONFIG).write_text("{}")
    assert is_adapter(str(tmp_path))
    check_model_path(str(tmp_path))
    with pytest.raises(UserError, match=r"an adapter; merge it .*training\.merge_adapter"):
        check_base_model(str(tmp_path))
