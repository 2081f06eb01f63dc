"""The Inception of FID: the network of torch-fidelity; only published weights are called by their name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from inception_weights import formula_weights, save_weights
from PIL import Image

from pixart_core.errors import UserError
from pixart_core.evaluation import inception
from pixart_core.evaluation.extractors import fid_extractor
from pixart_core.evaluation.inception import FidInception, load_inception
from pixart_core.evaluation.preparation import torch_fidelity

# Features of `formula_weights` on `ramp`, made once by FeatureExtractorInceptionV3 of torch-fidelity 0.4.0.
THEIRS = {0: 0.03917, 320: 0.56349, 700: 1.01702, 1088: 0.22473, 1500: 0.08989, 1856: 0.80189, 2047: 0.0}
THEIR_MEAN, THEIR_STD, THEIR_MAX = 0.27130529, 0.25228477, 3.07774925


def ramp() -> Image.Image:
    grey = np.add.outer(np.arange(64) * 3, np.arange(48) * 2)[:, :, None]
    return Image.fromarray(((grey * [1, 2, 3] + [0, 50, 100]) % 256).astype(np.uint8))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "formula.pth")


def test_features_are_those_of_torch_fidelity(weights: Path) -> None:
    extractor = fid_extractor("torch-fidelity", weights, torch.device("cpu"))
    features = extractor([ramp()])[0]
    assert {at: pytest.approx(value, abs=2e-5) for at, value in THEIRS.items()} == {
        at: features[at] for at in THEIRS
    }
    found = features.mean(), features.std(ddof=1), features.max()
    assert found == pytest.approx((THEIR_MEAN, THEIR_STD, THEIR_MAX), rel=1e-5)


def test_layers_have_the_published_shapes() -> None:
    with torch.device("meta"):
        model = FidInception().eval()
    shapes = {}
    for name, layer in model.named_children():
        layer.register_forward_hook(
            lambda _, __, out, name=name: shapes.__setitem__(name, tuple(out.shape[1:]))
        )
    with torch.no_grad():
        model(torch.zeros(1, 3, 299, 299, device="meta"))
    assert shapes == {
        "Conv2d_1a_3x3": (32, 149, 149),
        "Conv2d_2a_3x3": (32, 147, 147),
        "Conv2d_2b_3x3": (64, 147, 147),
        "Conv2d_3b_1x1": (80, 73, 73),
        "Conv2d_4a_3x3": (192, 71, 71),
        "Mixed_5b": (256, 35, 35),
        "Mixed_5c": (288, 35, 35),
        "Mixed_5d": (288, 35, 35),
        "Mixed_6a": (768, 17, 17),
        "Mixed_6b": (768, 17, 17),
        "Mixed_6c": (768, 17, 17),
        "Mixed_6d": (768, 17, 17),
        "Mixed_6e": (768, 17, 17),
        "Mixed_7a": (1280, 8, 8),
        "Mixed_7b": (2048, 8, 8),
        "Mixed_7c": (2048, 8, 8),
    }
    classifier = 2049 * 1008
    # 21,785,568 without the classifier, as torchvision's Inception v3 without its auxiliary head.
    assert sum(p.numel() for p in model.parameters()) - classifier == 21_785_568


def test_pools_leave_padding_out_and_the_last_one_takes_the_maximum() -> None:
    with torch.device("meta"):
        model = FidInception()
    model.load_state_dict(formula_weights(), strict=False, assign=True)
    model.eval()
    x = torch.randn(1, 2048, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = {}
    for name in ("Mixed_7b", "Mixed_7c"):
        pool = model.get_submodule(f"{name}.branch_pool")
        pool.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
    with torch.no_grad():
        model.Mixed_7c(x)
        model.Mixed_7b(x[:, :1280])
    torch.testing.assert_close(seen["Mixed_7b"][0, 0, 0, 0], x[0, 0, :2, :2].mean())
    torch.testing.assert_close(seen["Mixed_7c"][0, 0, 0, 0], x[0, 0, :2, :2].max())


def test_other_weights_are_never_called_fid(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = fid_extractor("coco256-cleanfid", weights, torch.device("cpu"))
    assert not extractor.standard
    assert extractor.protocol.startswith("frechet/inception-")
    monkeypatch.setattr("pixart_core.evaluation.extractors.SHA256_PREFIX", extractor.weights)
    assert fid_extractor("pytorch-fid", weights, torch.device("cpu")).protocol == "fid/pytorch-fid@1"


def test_a_missing_file_tells_what_to_download_and_how_large_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file .*pt_inception-2015-12-05-6726825d\.pth \(91 MB\)"):
        load_inception(tmp_path / "none.pth")


def test_a_damaged_download_of_the_published_name_is_refused(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / inception.FILE
    path.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(UserError, match="as its name says: damaged or cut off"):
        load_inception(path)


def test_what_is_no_such_network_is_refused_without_running_it(tmp_path: Path, weights: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "other.pth"
    for value, message in [
        ({"conv": torch.zeros(3)}, "another network"),
        (formula_weights() | {"extra": torch.zeros(1)}, "1 tensors differ, e.g. extra"),
        ([1, 2], "no state dict"),
        (Evil(), "cannot be read as PyTorch weights"),
    ]:
        torch.save(value, path)
        with pytest.raises(UserError, match=message):
            load_inception(path)
    assert not (tmp_path / "ran").exists()
    path.write_bytes(weights.read_bytes()[:200_000])
    with pytest.raises(UserError, match="cannot be read"):
        load_inception(path)


def test_counters_of_batch_norms_may_be_there_or_not(tmp_path: Path, weights: Path) -> None:
    with torch.device("meta"):
        names = FidInception().state_dict()
    whole = {name: torch.tensor(7) for name in names} | formula_weights()
    torch.save(whole, tmp_path / "whole.pth")
    a, b = load_inception(weights)[0], load_inception(tmp_path / "whole.pth")[0]
    x = torch.from_numpy(torch_fidelity(ramp()))[None]
    torch.testing.assert_close(a(x), b(x), rtol=0, atol=0)
