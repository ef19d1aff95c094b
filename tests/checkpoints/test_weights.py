import pytest
import torch
import torch.distributed.checkpoint as dcp

from lightning_minillm.checkpoints.weights import load_weights, read_metadata, read_weights, shapes_of, weight_shapes


@pytest.fixture(params=["file", "folder"])
def saved(request, tmp_path):
    """A layer and its checkpoint in either format."""
    layer, path = torch.nn.Linear(2, 3), tmp_path / "last.ckpt"
    rest = {"global_step": 7}
    if request.param == "file":
        torch.save({**rest, "state_dict": layer.state_dict(), "optimizer_states": [{"step": 1}]}, path)
    else:
        content = {"state_dict": layer.state_dict(), "optimizer_0": {"step": torch.tensor(1)}}
        dcp.save(content, checkpoint_id=path, no_dist=True)
        torch.save(rest, path / "meta.pt")
    return layer, path


def test_both_formats_hold_the_same(saved):
    layer, path = saved
    assert weight_shapes(path) == shapes_of(layer.state_dict()) == {"weight": (3, 2), "bias": (3,)}
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in read_weights(path).items())
    assert read_metadata(path) == {"global_step": 7}


def test_weights_are_loaded_into_a_module(saved):
    layer, path = saved
    other = torch.nn.Linear(2, 3)
    load_weights(other, path)
    assert torch.equal(other.weight, layer.weight)
    with pytest.raises(ValueError, match=r"different architecture: 1 weights differ .*weight \(here \(3, 4\), in the"):
        load_weights(torch.nn.Linear(4, 3), path)
    with pytest.raises(ValueError, match=r"e\.g\. bias \(here None"):
        load_weights(torch.nn.Linear(2, 3, bias=False), path)
