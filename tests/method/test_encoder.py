"""The encoder: auxiliary layer, attention, positions."""

import pytest
import torch

from more.method.tokens import resize_by_products, resize_positions
from tests.method.micro import SIDE, images, micro_network


@torch.no_grad()
def test_auxiliary_tokens_are_the_raw_output_of_the_third_block_from_the_end():
    encoder = micro_network().encoder
    seen = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    out = encoder(images())
    torch.testing.assert_close(out.aux_patch_tokens, seen[-3][:, 9:])
    torch.testing.assert_close(out.patch_tokens, encoder.norm(seen[-1])[:, 9:])
    last = micro_network(aux_layer=-1).encoder(images())
    torch.testing.assert_close(last.aux_patch_tokens, last.patch_tokens)


@torch.no_grad()
def test_positions_of_native_images_are_the_parameter_itself():
    encoder = micro_network().encoder
    assert encoder.positions((SIDE, SIDE)) is encoder.pos_embed
    other = encoder.positions((2 * SIDE, SIDE))
    assert other.shape[1] == 9 + 50
    torch.testing.assert_close(other[:, :9], encoder.pos_embed[:, :9])
    # As many patches as natively, in another arrangement.
    line = encoder.positions((encoder.patch_size, 25 * encoder.patch_size))
    assert line.shape == encoder.pos_embed.shape and not torch.equal(line, encoder.pos_embed)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(1, 1), (3, 7), (13, 13), (56, 40)])
def test_any_grid_gets_as_many_positions_as_patches(grid):
    encoder = micro_network().encoder
    size = (grid[0] * encoder.patch_size, grid[1] * encoder.patch_size)
    assert encoder.positions(size).shape[1] == 9 + grid[0] * grid[1]


@torch.no_grad()
def test_raw_attention_reproduces_the_last_block():
    """Softmax of the scaled raw scores gives the attention that the fused kernel applied."""
    network = micro_network(regularising_tokens=0)
    encoder, inputs = network.encoder, []
    block = encoder.blocks[-1]
    block.attn.register_forward_hook(lambda m, args, out: inputs.append((args[0], out)))
    raw = encoder.attention(images())
    x, applied = inputs[0]
    batch, count, width = x.shape
    value = block.attn.qkv(x).reshape(batch, count, 3, block.attn.num_heads, -1)[:, :, 2]
    weights = (raw * block.attn.head_dim ** -0.5).softmax(-1)
    mixed = (weights @ value.transpose(1, 2)).transpose(1, 2).reshape(batch, count, width)
    torch.testing.assert_close(block.attn.proj(mixed), applied)


@torch.no_grad()
def test_auxiliary_tokens_alone_take_fewer_blocks():
    encoder = micro_network().encoder
    whole, ran = encoder(images()), []
    for index, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    alone = encoder(images(), only_aux=True)
    assert ran == [0, 1] and alone.class_tokens is None and alone.patch_tokens is None
    assert torch.equal(alone.aux_patch_tokens, whole.aux_patch_tokens)
    assert alone.grid == whole.grid


def test_blocks_compile_once_for_all_and_keep_names_and_results():
    plain, compiled, graphs = micro_network(), micro_network(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    names = list(compiled.state_dict())
    compiled.encoder.compile_blocks(backend)
    assert list(compiled.state_dict()) == names
    results = []
    for network in (plain, compiled):
        tokens = network.encoder(images()).patch_tokens
        tokens.square().sum().backward()
        results.append((tokens.detach(), network.encoder.blocks[0].attn.qkv.weight.grad))
    torch.testing.assert_close(results[1], results[0])
    assert len(graphs) == 1  # four blocks, one graph


@pytest.mark.parametrize("grid, factors", [((21, 21), (21.1 / 14, 21.1 / 14)),
                                           ((7, 9), (7.1 / 14, 9.1 / 14)), ((20, 31), None)])
def test_positions_by_products_are_the_bicubic_ones(grid, factors):
    """What a GPU takes in place of its own bicubic kernel; its gradient as well."""
    positions = torch.randn(1, 14 * 14, 6, generator=torch.Generator().manual_seed(0))
    positions.requires_grad_()
    expected = resize_positions(positions, grid, factors)
    with torch.autocast("cpu", torch.bfloat16):  # positions stay in float32
        found = resize_by_products(positions.view(1, 14, 14, 6), grid, factors).flatten(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), positions)[0]
                                 for x in (found, expected)), rtol=1e-4, atol=1e-4)
