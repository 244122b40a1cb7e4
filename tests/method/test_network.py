"""The network: symmetries, batches, gradients, modes, groups."""


import pytest
import torch

from more.errors import UserError
from more.method.network import parameter_groups
from tests.method.micro import PATCH, SIDE, WIDTH, images, micro_network

PAPER = {"graph_neighbours": "patches", "graph_gate": "inner", "graph_output": "paper",
         "graph_similarity": "cosine", "lam_similarity": "cosine"}
PER_CLASS = ("class_tokens", "graph_tokens", "logits", "aux_logits", "cam", "aux_cam")


def outputs(network, batch) -> dict[str, torch.Tensor]:
    out = network(batch)
    return out._asdict()


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, PAPER], ids=["released", "paper"])
def test_permuted_classes_permute_outputs(options):
    network = micro_network(**options).double()
    batch = images().double()
    before, lam = outputs(network, batch), network(batch, mode="lam")
    order = torch.tensor([3, 0, 4, 1, 2])
    leading = torch.cat([torch.arange(4), 4 + order])
    encoder = network.encoder
    encoder.cls_token.copy_(encoder.cls_token[:, leading])
    encoder.pos_embed[:, :9] = encoder.pos_embed[:, leading]
    network.classifier.weight.copy_(network.classifier.weight[order])
    network.aux_classifier.weight.copy_(network.aux_classifier.weight[order])
    network.decoder.conv8.weight[1:] = network.decoder.conv8.weight[1 + order]
    after = outputs(network, batch)
    for name in PER_CLASS:
        torch.testing.assert_close(after[name], before[name][:, order], msg=name)
    torch.testing.assert_close(network(batch, mode="lam"), lam[:, order])
    torch.testing.assert_close(after["patch_tokens"], before["patch_tokens"])
    torch.testing.assert_close(after["seg_logits"][:, 1:], before["seg_logits"][:, 1 + order])
    torch.testing.assert_close(after["seg_logits"][:, 0], before["seg_logits"][:, 0])


@torch.no_grad()
def test_a_batch_equals_one_image_at_a_time():
    network = micro_network().double()
    batch = images(3).double()
    together = outputs(network, batch)
    alone = [outputs(network, image[None]) for image in batch]
    for name, tensor in together.items():
        torch.testing.assert_close(tensor, torch.cat([out[name] for out in alone]), msg=name)


@pytest.mark.parametrize("options", [
    {}, PAPER, {"graph": False}, {"classes": 1}, {"regularising_tokens": 0},
    {"pooling": "average"}, {"pooling": "lse"}, {"pooling": "competitive"}],
    ids=["released", "paper", "no graph", "one class", "no regularising", "average", "lse",
         "competitive"])
def test_every_parameter_gets_a_gradient(options):
    network = micro_network(**options)
    out = outputs(network, images())
    assert not out["cam"].requires_grad and not out["aux_cam"].requires_grad
    sum(t.square().sum() for t in out.values() if t.requires_grad).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in network.parameters())


@torch.no_grad()
def test_shapes_of_rectangular_images_off_the_patch_size():
    network = micro_network()
    height, width = 3 * PATCH + 5, 6 * PATCH + 1
    batch = images(2, height, width)
    out = outputs(network, batch)
    assert out["cam"].shape == out["aux_cam"].shape == (2, 5, 3, 6)
    assert out["seg_logits"].shape == (2, 6, 3, 6)
    assert out["patch_tokens"].shape == (2, WIDTH, 3, 6)
    # Pixels beyond the last whole patch are lost.
    cut = outputs(network, batch[..., :3 * PATCH, :6 * PATCH])
    torch.testing.assert_close(out["cam"], cut["cam"])


@torch.no_grad()
def test_modes_agree_with_the_training_forward():
    network = micro_network()
    batch = images()
    out, maps = network(batch), network(batch, mode="maps")
    cam, aux_cam = network(batch, mode="cam")
    lam = network(batch, mode="lam")
    expected = torch.einsum("bdhw,bcd->bchw", out.patch_tokens, out.graph_tokens)
    torch.testing.assert_close(lam, expected)
    for mine, theirs in ((maps["cam"], out.cam), (maps["aux_cam"], out.aux_cam), (cam, out.cam),
                         (aux_cam, out.aux_cam), (maps["lam"], lam),
                         (maps["logits"], out.logits)):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(network(batch, mode="segment"), out.seg_logits)
    assert network(batch, mode="attention").shape == lam.shape
    with pytest.raises(ValueError, match="mode 'cams'"):
        network(batch, mode="cams")


@torch.no_grad()
def test_cam_call_runs_neither_graph_nor_decoder():
    network = micro_network()
    network.graph = network.decoder = None
    cam, _ = network(images(), mode="cam")
    assert cam.shape == (2, 5, 5, 5)


@torch.no_grad()
def test_maps_stay_as_tokens_lie_in_memory():
    """Channels last, from the patch tokens to the decoder's logits: no convolution turns them."""
    network = micro_network()
    output = network(images(2))
    for maps in (output.patch_tokens, output.seg_logits, output.cam, output.aux_cam):
        assert maps.stride(1) == 1 and maps.stride(3) == maps.shape[1]


def test_without_graph_the_class_tokens_pass_through():
    network = micro_network(graph=False)
    out = network(images())
    assert out.graph_tokens is out.class_tokens
    assert not [name for name, _ in network.named_parameters() if name.startswith("graph")]


@torch.no_grad()
def test_cosine_lam_is_bounded():
    lam = micro_network(lam_similarity="cosine")(images(), mode="lam")
    assert lam.abs().max() <= 1 + 1e-6


@torch.no_grad()
def test_poolings_are_ordered():
    logits = {}
    for pooling in ("average", "lse", "max"):
        network = micro_network(pooling=pooling)
        network.classifier.weight.abs_()  # pooling of features is monotone in the weights
        logits[pooling] = network(images()).logits
    assert (logits["average"] < logits["lse"]).all() and (logits["lse"] < logits["max"]).all()


def test_gradient_checkpointing_changes_nothing():
    plain, saving = micro_network(), micro_network()
    saving.encoder.set_grad_checkpointing(True)
    for network in (plain, saving):
        out = network(images())
        (out.logits.sum() + out.aux_logits.sum() + out.graph_tokens.square().sum()).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)


@torch.no_grad()
def test_autocast_keeps_maps_in_float32():
    network = micro_network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, lam = network(images()), network(images(), mode="lam")
    assert out.cam.dtype == out.logits.dtype == lam.dtype == torch.float32
    assert out.cam.isfinite().all() and lam.isfinite().all()


@torch.no_grad()
def test_bfloat16_weights_run():
    network = micro_network().bfloat16()
    out = network(images().bfloat16())
    assert out.seg_logits.dtype == torch.bfloat16 and out.cam.dtype == torch.float32


def test_parameter_groups_hold_every_parameter_once():
    network = micro_network()
    groups = parameter_groups(network)
    assert [group["name"] for group in groups] == [
        "encoder", "encoder_norm", "classifiers", "graph", "decoder"]
    assert [group["lr_scale"] for group in groups] == [1, 1, 10, 10, 10]
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in network.parameters()}
    norms = {id(p) for name, p in network.encoder.named_parameters() if "norm" in name}
    assert norms == {id(p) for p in groups[1]["params"]}
    names = [group["name"] for group in parameter_groups(micro_network(graph=False))]
    assert "graph" not in names


def test_unfit_options_are_refused():
    with pytest.raises(UserError, match="aux_layer = -7 is outside a backbone of 4"):
        micro_network(aux_layer=-7)
    with pytest.raises(UserError, match="pooling is 'mean'"):
        micro_network(pooling="mean")
    with pytest.raises(UserError, match="smaller than a patch"):
        micro_network()(images(1, PATCH - 1, SIDE))


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["max", "competitive"])
def test_the_auxiliary_cam_alone_is_the_same(pooling):
    network = micro_network(pooling=pooling)
    (alone,) = network(images(), mode="aux_cam")
    assert torch.equal(alone, network(images(), mode="cam")[1]) and not alone.requires_grad


@torch.no_grad()
def test_half_runs_the_encoder_in_bf16_and_gives_float32_maps():
    network, seen = micro_network(), []
    network.encoder.blocks[0].attn.qkv.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype))
    exact, rough = (network(images(), mode="cam", half=half) for half in (False, True))
    assert seen == [torch.float32, torch.bfloat16] and rough[0].dtype == torch.float32
    worst = (exact[0] - rough[0]).abs().max() / exact[0].abs().max()
    assert 0 < worst < 0.05
