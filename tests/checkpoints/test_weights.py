import pytest
import torch
import torch.distributed.checkpoint as dcp

from lightning_minillm.checkpoints.weights import (
    completed,
    leave_out_frozen,
    load_weights,
    read_metadata,
    read_weights,
    shapes_of,
    weight_shapes,
)


@pytest.fixture(params=["file", "folder"])
def saved(request, tmp_path):
    """A layer and its checkpoint in either format."""
    layer, path = torch.nn.Linear(2, 3), tmp_path / "last.ckpt"
    rest = {"global_step": 7}
    if request.param == "file":
        torch.save({**rest, "state_dict": layer.state_dict(), "optimizer_states": [{"step": 1}]}, path)
    else:
        content = {"state_dict": layer.state_dict(), "optimizer_0": {"step": torch.tensor(1)}}
        dcp.save(content, checkpoint_id=path)
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


def test_frozen_weights_are_left_out_and_completed(tmp_path):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    whole = {"state_dict": layers.state_dict()}
    leave_out_frozen(whole, layers)
    assert list(whole) == ["state_dict"]
    assert whole["state_dict"].keys() == layers.state_dict().keys()
    layers[0].requires_grad_(False)
    checkpoint = {"state_dict": layers.state_dict()}
    leave_out_frozen(checkpoint, layers)
    assert checkpoint["state_dict"].keys() == {"1.weight", "1.bias"}
    assert completed(layers, checkpoint["state_dict"], checkpoint).keys() == layers.state_dict().keys()
    assert completed(layers, layers.state_dict(), {}).keys() == layers.state_dict().keys()  # with the frozen weights
    torch.save(checkpoint, tmp_path / "last.ckpt")
    wanted = layers[1].weight.clone()
    torch.nn.init.zeros_(layers[1].weight)
    load_weights(layers, tmp_path / "last.ckpt")
    assert torch.equal(layers[1].weight, wanted)
    with pytest.raises(ValueError, match="different architecture: 2 weights"):
        completed(layers, {}, checkpoint)
    torch.nn.init.ones_(layers[0].weight)
    with pytest.raises(ValueError, match="has other weights now"):
        completed(layers, checkpoint["state_dict"], checkpoint)
