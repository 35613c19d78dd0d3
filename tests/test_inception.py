"""FID's extractor: weights read safely, images as the network wants them."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from sdekit import metrics
from sdekit.metrics.inception import WEIGHTS


class Standin(nn.Module):
    """In place of torch-fidelity's network: reads its file, tells what it was given."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None) -> None:
        super().__init__()
        assert features_list == ["2048"]
        self.state = torch.load(feature_extractor_weights_path, weights_only=True)

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return (self.state["w"] * x.float().mean((2, 3)),)


@pytest.fixture
def fidelity(monkeypatch):
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Standin
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_images_become_levels_of_three_channels(fidelity, tmp_path):
    torch.save({"w": torch.tensor(2.0)}, tmp_path / "w.pth")
    extractor = metrics.inception(tmp_path / "w.pth")
    grey = torch.tensor([-1.0, 0.0, 1.0, 1.5]).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    features = metrics.extract_features(extractor, grey)
    assert features.name == "Inception"
    assert features.values.tolist() == [[0.0] * 3, [256.0] * 3, [510.0] * 3, [510.0] * 3]
    with pytest.raises(ValueError, match=r"images must have shape \(n, 1 or 3, h, w\), got \(4, 2"):
        extractor(torch.zeros(4, 2, 8, 8))


def test_weights_are_looked_for_where_torch_keeps_them(fidelity, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no Inception weights at .*get weights-inception"):
        metrics.inception()
    (tmp_path / "checkpoints").mkdir()
    torch.save({"w": torch.tensor(1.0)}, tmp_path / "checkpoints" / WEIGHTS)
    assert metrics.inception()(torch.ones(1, 3, 8, 8)).tolist() == [[255.0] * 3]


class Harm:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_file_with_code_is_refused(fidelity, tmp_path, capsys):
    torch.save(Harm(), tmp_path / "w.pth")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        metrics.inception(tmp_path / "w.pth")
    assert "code ran" not in capsys.readouterr().out


def test_the_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(ImportError, match=r"sdekit\[fid\]"):
        metrics.inception(tmp_path / "w.pth")
