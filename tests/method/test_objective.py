"""The objective: switches, weights, masks, options, and that no parameter is ever left out."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from more.method.cam import minmax, resize
from more.method.labels import Batch, denormalise, refined_label
from more.method.losses.ure import random_keys
from more.method.objective import TERMS, make_objective
from tests.method.objectives import COCO, VARIANTS, VOC, objective, voc

B, C, D, GRID, CROP = 4, 4, 6, (8, 8), (32, 32)
HEADS = ("class_tokens", "graph_tokens", "patch_tokens", "logits", "aux_logits", "seg_logits")


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def output(rows=slice(None)):
    shapes = dict(class_tokens=(C, D), graph_tokens=(C, D), patch_tokens=(D, *GRID),
                  logits=(C,), aux_logits=(C,), seg_logits=(C + 1, *GRID))
    full = {n: drawn(B, *s, seed=i) for i, (n, s) in enumerate(shapes.items())}
    return SimpleNamespace(**{n: t[rows].clone().requires_grad_() for n, t in full.items()})


def batch(rows=slice(None), **changes):
    tags = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1.0]])
    smooth = torch.nn.functional.interpolate(drawn(B, 2 * C, 5, 5, seed=20), size=CROP,
                                             mode="bilinear").sigmoid()
    values = dict(images=drawn(B, 3, *CROP, seed=21) * 0.5, tags=tags, cams=smooth[:, :C],
                  aux_cams=smooth[:, C:],
                  keys=random_keys(B, GRID, torch.Generator().manual_seed(3)))
    return Batch(**{**{n: t[rows] for n, t in values.items()}, **changes})


def gradients(total, out):
    return dict(zip(HEADS, torch.autograd.grad(total, [getattr(out, n) for n in HEADS],
                                               allow_unused=True), strict=True))


@pytest.mark.parametrize("recipe, step, active", [
    (VOC, 0, "cls cls_aux mcl cre ure ptc"),
    (VOC, 2000, "cls cls_aux mcl cre ure ptc"),
    (VOC, 2001, "cls cls_aux mcl cre ure ptc seg energy"),
    (COCO, 8000, "cls cls_aux mcl"),
    (COCO, 8001, "cls cls_aux mcl ptc"),
    (COCO, 12001, "cls cls_aux mcl cre ure ptc"),
    (COCO, 16000, "cls cls_aux mcl cre ure ptc"),
    (COCO, 16001, "cls cls_aux mcl cre ure ptc seg energy"),
])
def test_total_is_the_weighted_sum_of_active_terms(recipe, step, active):
    terms = objective(recipe, compute_inactive=True)(output(), batch(), step)
    assert list(terms) == [*TERMS, "total"]
    expected = sum(getattr(recipe.loss.weights, t) * terms[t] for t in active.split())
    torch.testing.assert_close(terms["total"], expected)
    assert all(t.ndim == 0 and torch.isfinite(t) for t in terms.values())


@pytest.mark.parametrize("recipe", [VOC, COCO])
@pytest.mark.parametrize("step", [0, 60000])
def test_every_output_gets_a_gradient_at_every_step(recipe, step):
    out = output()
    found = gradients(make_objective(recipe)(out, batch(), step)["total"], out)
    assert all(g is not None and torch.isfinite(g).all() for n, g in found.items()
               if n != "patch_tokens" or recipe is VOC)
    assert found["seg_logits"].any() == (step > 0)
    assert found["graph_tokens"].any() and not found["class_tokens"].any()


@pytest.mark.parametrize("recipe", [VOC, COCO])
@pytest.mark.parametrize("cams", ["zero", "one", "middle"])
@pytest.mark.parametrize("tagged", [False, True])
def test_batches_without_anything_to_learn_from_stay_finite(recipe, cams, tagged):
    """Fault 8: nothing confident, everything confident, everything ignored; no tag at all."""
    out, value = output(), {"zero": 0.0, "one": 1.0, "middle": 0.45}[cams]
    maps = torch.full((B, C, *CROP), value)
    tags = batch().tags if tagged else torch.zeros(B, C)
    terms = make_objective(recipe)(out, batch(cams=maps, aux_cams=maps, tags=tags), 60000)
    assert all(torch.isfinite(value) for value in terms.values()), terms
    found = gradients(terms["total"], out)
    assert all(g is None or torch.isfinite(g).all() for g in found.values())


def test_decoder_terms_are_skipped_before_their_start():
    def fail(*_):
        raise AssertionError("the filter must not run")

    made = objective(VOC, filter=fail)
    terms = made(output(), batch(), 2000)
    assert terms["seg"] == 0 and terms["energy"] == 0
    with pytest.raises(AssertionError, match="filter"):
        made(output(), batch(), 2001)


@pytest.mark.parametrize("term", ["cre", "ure", "ptc", "seg", "energy"])
def test_weight_zero_leaves_the_term_out(term):
    recipe = voc(f"loss.weights.{term}=0")
    full, without = (make_objective(r)(output(), batch(), 5000) for r in (VOC, recipe))
    assert without[term] == 0
    torch.testing.assert_close(
        full["total"] - getattr(VOC.loss.weights, term) * full[term], without["total"])


def test_masks_early_and_late():
    from more.method.cam import resize
    from more.method.labels import cam_to_label

    data, made = batch(), make_objective(VOC)
    aux, main = resize(data.aux_cams, GRID), resize(data.cams, GRID)
    early, late = (made.masks(output(), data, step) for step in (10000, 10001))
    assert torch.equal(early.contrast, cam_to_label(aux, data.tags, 0.7, 0.25))
    assert torch.equal(early.confident, cam_to_label(aux, data.tags, 0.5, 0.25))
    assert torch.equal(early.uncertain, early.contrast)
    assert torch.equal(late.contrast, early.contrast)
    assert torch.equal(late.confident, cam_to_label(main, data.tags, 0.6, 0.35))
    assert torch.equal(late.uncertain, late.confident)
    assert not torch.equal(late.confident, early.confident)


def test_classes_may_be_permuted():
    order = torch.tensor([2, 0, 3, 1])
    out, data = output(), batch()
    moved = SimpleNamespace(**{n: getattr(out, n) for n in HEADS})
    for name in ("class_tokens", "graph_tokens", "logits", "aux_logits"):
        setattr(moved, name, getattr(out, name)[:, order])
    moved.seg_logits = out.seg_logits[:, torch.cat([torch.zeros(1, dtype=int), order + 1])]
    other = batch(tags=data.tags[:, order], cams=data.cams[:, order],
                  aux_cams=data.aux_cams[:, order])
    for step in (3000, 20000):
        a, b = make_objective(VOC)(out, data, step), make_objective(VOC)(moved, other, step)
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-7)


def test_positions_replace_the_random_choice():
    positions = torch.tensor([[[0, 0], [1, 1]], [[0, 1], [-1, -1]], [[1, 0], [0, 0]],
                              [[-1, -1], [-1, -1]]])
    a = make_objective(VOC)(output(), batch(), 0, positions)["ure"]
    b = make_objective(VOC)(output(), batch(keys=None), 0, positions)["ure"]
    assert a == b != make_objective(VOC)(output(), batch(), 0)["ure"]


@pytest.mark.parametrize("tags", [0.0, 1.0])
@pytest.mark.parametrize("cam", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_empty_cases_are_finite(tags, cam, variant):
    """No tag; nothing confident (0.4: all uncertain; 0: all background); nothing uncertain."""
    data = batch(tags=torch.full((B, C), tags), cams=torch.full((B, C, *CROP), cam),
                 aux_cams=torch.full((B, C, *CROP), cam))
    for step in (0, 3000, 20000):
        out = output()
        terms = make_objective(voc(*VARIANTS[variant]))(out, data, step)
        assert all(torch.isfinite(t) for t in terms.values())
        assert all(torch.isfinite(g).all() for g in gradients(terms["total"], out).values())


def test_variants_and_single_options_change_the_terms():
    base = make_objective(VOC)(output(), batch(), 3000)
    for option, term in [("mcl_form=mixed", "mcl"), ("cre_similarity=cosine", "cre"),
                         ("cre_reduction=pairs", "cre"), ("ure_form=paper", "ure"),
                         ("pseudo_label=lam", "seg")]:
        terms = make_objective(voc(f"loss.{option}"))(output(), batch(), 3000)
        changed = {name for name in TERMS if terms[name] != base[name]}
        assert term in changed and changed <= {term, "energy"}


def test_padding_can_be_left_out_of_all_masks():
    box = torch.tensor([[0, 20, 0, 32]] * B)
    data = batch(box=box)
    released, boxed = (
        make_objective(voc(f"loss.exclude_padding={e}")) for e in (False, True))
    assert released(output(), data, 3000)["total"] == released(output(), batch(), 3000)["total"]
    for step in (3000, 20000):
        masks = boxed.masks(output(), data, step)
        assert (masks.contrast[:, 5:] == 255).all() and (masks.confident[:, 5:] == 255).all()
        assert not masks.uncertain[:, 5:].any() and (masks.uncertain[:, :5] == 255).any()
    assert (boxed.pseudo_label(output(), data)[:, 20:] == 255).all()
    assert boxed(output(), data, 3000)["ptc"] != released(output(), data, 3000)["ptc"]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_labels_from_the_lam_take_its_similarity(similarity):
    data, out = batch(), output()
    out.patch_tokens.data[:, :, :, ::2] *= 9  # lengths, which only the dot product looks at
    made = make_objective(voc("loss.pseudo_label=lam", f"model.lam_similarity={similarity}"))
    patches, tokens = out.patch_tokens, out.graph_tokens
    if similarity == "cosine":
        patches, tokens = F.normalize(patches, dim=1), F.normalize(tokens, dim=2)
    lam = minmax(torch.einsum("bdhw,bcd->bchw", patches, tokens))
    images = denormalise(data.images, data.mean, data.std)
    wanted = refined_label(images, resize(lam, CROP), data.tags, *made.label_levels, made.par)
    assert torch.equal(made.pseudo_label(out, data), wanted)


@pytest.mark.parametrize("given, high, low", [
    ((), 0.7, 0.25), (("high=0.5",), 0.5, 0.25), (("low=0.1",), 0.7, 0.1),
    (("high=0.55", "low=0.45"), 0.55, 0.45), (("low=0.0",), 0.7, 0.0)])
def test_the_decoders_labels_have_levels_of_their_own(given, high, low):
    data, made = batch(), make_objective(voc(*(f"loss.label_{one}" for one in given)))
    found = made.pseudo_label(output(), data)
    images = denormalise(data.images, data.mean, data.std)
    assert torch.equal(found, refined_label(images, data.cams, data.tags, high, low, made.par))
    released = make_objective(VOC)
    assert torch.equal(found, released.pseudo_label(output(), data)) != bool(given)
    masks = [one.masks(output(), data, 10001) for one in (made, released)]
    assert all(map(torch.equal, *masks)), "the other terms keep theirs"


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("step", [3000, 20000])
def test_two_ranks_give_the_losses_and_gradients_of_one(step, variant):
    out, made = output(), make_objective(voc(*VARIANTS[variant]))
    whole = made(out, batch(), step)
    expected = gradients(whole["total"], out)
    halves = [slice(0, 2), slice(2, 4)]
    counted = [[], []]
    for rank, rows in enumerate(halves):
        made(output(rows), batch(rows, share=0.5, count_reduce=lambda n, r=rank: (
            counted[r].append(n), n)[1]), step)
    means = [(a + b) / 2 for a, b in zip(*counted, strict=True)]
    terms, found = [], []
    for rows in halves:
        part, feed = output(rows), iter(means)
        data = batch(rows, share=0.5, count_reduce=lambda n, feed=feed: next(feed))
        terms.append(made(part, data, step))
        found.append(gradients(terms[-1]["total"], part))
    for name in whole:
        mean = torch.stack([t[name] for t in terms]).mean()
        torch.testing.assert_close(mean, whole[name], rtol=1e-5, atol=1e-9)
    for name, gradient in expected.items():
        both = torch.cat([f[name] for f in found]) / 2
        torch.testing.assert_close(both, gradient, rtol=1e-4, atol=1e-7)


def test_too_small_grids_are_refused_before_training():
    with pytest.raises(ValueError, match="patch grid"):
        make_objective(VOC).check((6, 10))
    make_objective(VOC).check((7, 7))
    make_objective(voc("loss.weights.ure=0")).check((4, 4))


def test_the_terms_are_those_of_the_config():
    assert set(TERMS) == set(VOC.loss.weights.__dict__) == set(VOC.loss.start.__dict__)
