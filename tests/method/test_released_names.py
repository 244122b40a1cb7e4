"""Released checkpoints: names in both directions, round trip, refusals."""

import pytest
import torch

from more.errors import UserError
from more.method.make_network import build_network
from more.method.released_names import from_released, own_name, released_name, to_released
from more.method.weight_files import load_released_state
from tests.method.micro import SIDE, WIDTH, images, micro_model, micro_network


def released_state(network) -> dict[str, torch.Tensor]:
    """As the release saves it, with the two parts that nothing uses."""
    unused = {"encoder.head.weight": torch.zeros(9, WIDTH), "encoder.head.bias": torch.zeros(9),
              "graph_layer._fc1.0.weight": torch.zeros(WIDTH, WIDTH),
              "graph_layer._fc1.0.bias": torch.zeros(WIDTH)}
    return {**to_released(network.state_dict()), **unused}


def test_names_go_both_ways():
    state = micro_network().state_dict()
    assert set(from_released(to_released(state))) == set(state)
    assert all(own_name(released_name(name)) == name == own_name(name) for name in state)
    assert released_name("graph.tail.weight") == "graph_layer.tail_proj.weight"
    assert own_name("graph_layer._fc1.0.bias") is None


@pytest.mark.parametrize("wrap", [
    lambda s: s, lambda s: {"module." + k: v for k, v in s.items()},
    lambda s: {"state_dict": s, "iter": 7}, lambda s: {"model": {"module." + k: v
                                                                 for k, v in s.items()}}],
    ids=["bare", "module", "state_dict", "model+module"])
@torch.no_grad()
def test_round_trip_through_a_file(tmp_path, wrap):
    source = micro_network(seed=1)
    torch.save(wrap(released_state(source)), tmp_path / "released.pth")
    loaded = micro_network_from(tmp_path / "released.pth")
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    torch.testing.assert_close(loaded(images()).graph_tokens, source(images()).graph_tokens)


def micro_network_from(path, classes: int = 5, **options):
    return build_network(micro_model(classes, weights=path, **options), SIDE).eval()


def test_graph_of_a_checkpoint_is_ignored_without_graph(tmp_path):
    torch.save(released_state(micro_network(seed=1)), tmp_path / "released.pth")
    network = micro_network_from(tmp_path / "released.pth", graph=False)
    assert network.graph is None
    paper = micro_network_from(tmp_path / "released.pth", graph_output="paper")
    assert not any("norm" in name for name, _ in paper.graph.named_parameters())


def test_wrong_shapes_name_tensor_shapes_and_cause(tmp_path):
    torch.save(released_state(micro_network()), tmp_path / "five.pth")
    with pytest.raises(UserError) as caught:
        micro_network_from(tmp_path / "five.pth", classes=6)
    text = str(caught.value)
    assert "five.pth" in text and "number of classes" in text and "[" in text
    with pytest.raises(UserError, match=r"conv\d.weight has shape \[.*\], the model needs \["):
        micro_network_from(tmp_path / "five.pth", decoder_width=20)


def test_missing_tensors_are_named():
    network = micro_network()
    state = released_state(network)
    del state["classifier.weight"]
    with pytest.raises(UserError, match="1 tensors missing: classifier.weight"):
        load_released_state(network, state, "half.pth")
