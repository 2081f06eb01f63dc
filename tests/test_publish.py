"""What is published appears whole or not at all, whenever a run ends."""

import resource
import shutil
from pathlib import Path

import pytest
import torch

from pixart_core.artifacts.publish import check_writable, restore_replaced, staged_file, staged_folder
from pixart_core.errors import PixartError, UserError
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import WEIGHTS, load_weights, save_transformer


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs."""


def put(folder: Path, text: str) -> None:
    with staged_folder(folder) as staging:
        (staging / "a").write_text(text)


def test_old_content_survives_a_kill_between_the_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "x", "old")
    rename = Path.rename

    def killed_at_the_second(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_at_the_second)
        with pytest.raises(Killed):
            put(tmp_path / "x", "new")
    assert not (tmp_path / "x").exists()
    with pytest.raises(Killed), staged_folder(tmp_path / "x"):
        raise Killed  # killed again: by now the old content is back
    assert (tmp_path / "x" / "a").read_text() == "old"
    put(tmp_path / "x", "new")
    assert (tmp_path / "x" / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_was_replaced_is_rubbish_beside_what_replaced_it(tmp_path: Path) -> None:
    put(tmp_path / "x", "new")
    shutil.copytree(tmp_path / "x", tmp_path / ".x.old")
    restore_replaced(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_unfinished_file_leaves_the_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def write() -> None:
        with staged_file(tmp_path / "a") as partial:
            partial.write_text("new")
            raise OSError(28, "No space left on device")

    with pytest.raises(PixartError, match="No space left"):
        write()
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("place", ["/proc/foo", "/proc/foo/bar", "file/x"])
def test_a_place_that_takes_no_folder_is_found_out_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot write to {place}"):
        check_writable(Path(place))
    check_writable(Path("new/folder"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def small_model(depth: int = 2) -> tuple[TransformerConfig, dict[str, torch.Tensor]]:
    config = TransformerConfig(
        num_attention_heads=2, attention_head_dim=12, num_layers=depth, sample_size=8, caption_channels=8
    )
    return config, build_transformer(config).state_dict()


def test_a_full_disk_leaves_no_half_transformer(tmp_path: Path) -> None:
    config, weights = small_model()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(PixartError, match=WEIGHTS):
            save_transformer(config, weights, tmp_path / "t")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert list((tmp_path / "t").iterdir()) == []


def test_weights_are_written_without_a_copy_of_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, weights = small_model()
    whole = sum(tensor.numel() * 4 for tensor in weights.values())
    written: list[int] = []
    write = Path.write_bytes
    monkeypatch.setattr(
        Path, "write_bytes", lambda self, data: written.append(len(data)) or write(self, data)
    )
    save_transformer(config, weights, tmp_path)
    assert max(written) < whole / 10  # config.json alone goes through memory
    loaded = load_weights(tmp_path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    modes = {(tmp_path / name).stat().st_mode for name in (WEIGHTS, "config.json")}
    assert len(modes) == 1  # whoever may read the one may read the other
