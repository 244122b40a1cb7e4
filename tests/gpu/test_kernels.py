"""What runs on a CUDA device against the same on the CPU."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from more.config.load import load_config
from more.filtering import crf
from more.filtering.bilateral import bilateral_features
from more.filtering.gaussian_attention import AttentionGaussian
from more.filtering.parameters import CRFParams
from more.method.gcr import GraphCategoryRepresentation
from more.method.labels import refined_label
from more.method.make_network import make_network
from more.method.objective import make_objective
from more.method.par import PixelAdaptiveRefinement
from tests.filtering.test_crf import scene
from tests.method.objectives import VOC, voc
from tests.method.test_objective import batch, gradients, output
from tests.research.losses import draw_cams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda", 0)


def moved(holder):
    """An output or a batch with its tensors on the device; its leaves stay leaves."""
    for name, value in vars(holder).items():
        if isinstance(value, torch.Tensor):
            setattr(holder, name, value.detach().to(CUDA).requires_grad_(value.requires_grad))
    return holder


@pytest.mark.parametrize("step", [0, 60000])
def test_all_terms_and_their_gradients(step):
    objective, found = make_objective(VOC), []
    for out, data in ((output(), batch()), (moved(output()), moved(batch()))):
        terms = objective(out, data, step)
        found.append((terms, gradients(terms["total"], out)))
    (ours, theirs), (grads, others) = (zip(*found, strict=True))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value.cpu(), rtol=1e-4, atol=1e-6)
    for name, value in others.items():
        if value is not None:
            torch.testing.assert_close(grads[name], value.cpu(), rtol=1e-3, atol=1e-6)


def test_refined_labels():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 16, 16, generator=generator)
    images = torch.nn.functional.interpolate(images, size=(96, 96), mode="bicubic").clamp(0, 1)
    cams, tags = draw_cams(5, 2, 96, generator), torch.zeros(2, 5)
    tags[0, 1] = tags[1, 0] = tags[1, 4] = 1
    par = PixelAdaptiveRefinement()
    here = refined_label(images, cams, tags, 0.7, 0.25, par)
    there = refined_label(images.to(CUDA), cams.to(CUDA), tags.to(CUDA), 0.7, 0.25, par)
    assert (here == there.cpu()).float().mean() > 0.9999 and len(here.unique()) > 3


def test_graph_in_float32_and_bf16():
    torch.manual_seed(0)
    graph = GraphCategoryRepresentation(32)
    tokens, patches = torch.randn(2, 6, 32), torch.randn(2, 49, 32)
    expected = graph(tokens, patches)
    graph = graph.to(CUDA)
    torch.testing.assert_close(graph(tokens.to(CUDA), patches.to(CUDA)).cpu(), expected,
                               rtol=1e-3, atol=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        half = graph(tokens.to(CUDA).requires_grad_(), patches.to(CUDA))
    half.float().sum().backward()
    assert torch.isfinite(half).all()
    assert all(torch.isfinite(p.grad).all() for p in graph.parameters())


@pytest.mark.parametrize("labels", [2, 21])
def test_the_crf_gives_the_labels_of_the_cpu(labels):
    image, probs = scene(labels, 187, 250)
    there = crf.refine_batch([image] * 3, [probs] * 3, CRFParams(), "lattice", "cuda:0")
    here = crf.refine(image, probs, CRFParams(), "lattice")
    for one in there:
        assert (one.argmax(0) == here.argmax(0)).mean() >= 0.999
    if importlib.util.find_spec("pydensecrf"):
        oracle = crf.refine(image, probs, CRFParams(), "pydensecrf")
        assert (there[0].argmax(0) == oracle.argmax(0)).mean() >= 0.999
        assert np.abs(there[0] - oracle).mean() < 1e-3


@pytest.mark.parametrize("half", [False, True])
def test_the_network_in_both_precisions(half):
    config = load_config("configs/shapes_micro.py")
    torch.manual_seed(0)
    network, images = make_network(config), torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        expected = network(images, mode="cam")
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            found = network.to(CUDA)(images.to(CUDA), mode="cam")
    for ours, theirs in zip(found, expected, strict=True):
        gap = (ours.float().cpu() - theirs).norm() / theirs.norm()
        assert gap < (0.05 if half else 1e-3)  # cuDNN's convolutions use TF32


@pytest.mark.parametrize(("kind", "most"), [(None, 1e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("labels", "stride"), [(1, 1), (21, 2), (200, 1)])
def test_attention_filters_in_16_bits_as_the_cpu_in_float32(kind, most, labels, stride):
    image, probs = scene(labels, 63, 80)
    features = bilateral_features(torch.from_numpy(image).permute(2, 0, 1)[None], 50, 15)
    values = torch.from_numpy(probs).flatten(1)[None]
    expected = AttentionGaussian(features, (63, 80), stride).filter(values)
    there = AttentionGaussian(features.to(CUDA), (63, 80), stride, dtype=kind)
    assert there.dtype == (kind or torch.float16)
    found = there.filter(values.to(CUDA))
    assert found.is_cuda and found.dtype == torch.float32
    assert (found.cpu() - expected).abs().sum() / expected.sum() < most


def test_attention_makes_no_matrix_of_all_pairs():
    features = torch.rand(1, 224 * 224, 5, device=CUDA)
    values = torch.rand(1, 21, 224 * 224, device=CUDA)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    AttentionGaussian(features).filter(values)
    assert torch.cuda.max_memory_allocated() - before < 2 * features.shape[1] ** 2 / 10


def test_the_energy_by_attention():
    found = []
    for move in (lambda holder: holder, moved):
        out, data = move(output()), move(batch())
        terms = make_objective(voc("loss.energy_filter=attention"))(out, data, 60000)
        grad = torch.autograd.grad(terms["energy"], out.seg_logits)[0]
        found.append((terms["energy"].cpu(), grad.cpu().flatten()))
    (here, ours), (there, theirs) = found
    torch.testing.assert_close(there, here, rtol=5e-3, atol=0)
    assert torch.cosine_similarity(ours, theirs, 0) > 0.9999
