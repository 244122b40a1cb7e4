"""A training step as research code writes it: attention as a whole matrix, one view of the CAM at a
time, losses and labels image by image and class by class (method §4.1 to §4.8).

The formulas are written out here and in the other files of this folder; from the project come the
weights and the layers' modules alone. Nothing is done badly on purpose: where a loop over pixels
would only be slow, the sums run over the pixels of an image (`by_position=True` takes the loops).
The bilateral filter works with a dictionary, so it is slower than the release's compiled one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.oracles import labels, lattice, losses

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def up(x, size):
    """Bilinear, corners not aligned."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def encode(encoder, images):
    """Class tokens, patch tokens and auxiliary patch tokens; softmax(q·k) is a matrix in memory."""
    patch = encoder.patch_size
    grid = (images.shape[-2] // patch, images.shape[-1] // patch)
    cut = images[..., :grid[0] * patch, :grid[1] * patch]
    x = F.conv2d(cut, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, stride=patch)
    x = torch.cat([encoder.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = encoder.norm_pre(x + encoder.positions(tuple(images.shape[-2:])))
    outputs = []
    for block in encoder.blocks:
        x = x + block.ls1(attend(block.attn, block.norm1(x)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
        outputs.append(x)
    outputs[-1] = encoder.norm(x)
    leading, drop = encoder.cls_token.shape[1], encoder.regularising_tokens

    def as_map(tokens):
        return tokens[:, leading:].transpose(1, 2).reshape(len(tokens), -1, *grid)
    return (outputs[-1][:, drop:leading], as_map(outputs[-1]),
            as_map(outputs[encoder.aux_index]))


def attend(attention, x):
    """Multi-head attention with its matrix [B,heads,N,N]."""
    batch, count, width = x.shape
    heads = attention.num_heads
    qkv = attention.qkv(x).reshape(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    weights = (qkv[0] @ qkv[1].transpose(-2, -1) * (width // heads) ** -0.5).softmax(dim=-1)
    return attention.proj((weights @ qkv[2]).transpose(1, 2).reshape(batch, count, width))


def graph_tokens(graph, tokens, patches):
    """GCR, one class token at a time."""
    result = []
    for c, f in zip(tokens, patches.detach().flatten(2).transpose(1, 2), strict=True):
        tails = graph.tail(torch.cat([c, f]))
        for k in range(len(c)):
            head = graph.head(c[k])
            kept, index = (tails @ head / len(head) ** 0.5).topk(len(c) // 2)
            near, share = tails[index], kept.softmax(0)[:, None]
            gate = torch.tanh(head + (1 - share) * head + share * near)
            message = (near.sum(1) * gate.sum(1)).softmax(0) @ near
            total = (F.leaky_relu(graph.sum_branch(c[k] + 0.1 * (head + message)))
                     + F.leaky_relu(graph.product_branch(c[k] + 0.1 * head * message)))
            result.append(graph.norm(total))
    return torch.stack(result).view_as(tokens)


def cam_views(network, images, scales):
    """Multi-scale CAM and auxiliary CAM of all classes: two forwards for every scale."""
    size, totals = tuple(images.shape[-2:]), [0.0, 0.0]
    with torch.no_grad():
        for scale in scales:
            small = up(images, (int(scale * size[0]), int(scale * size[1])))
            plain = _cams(network, small)
            mirror = [m.flip(-1) for m in _cams(network, small.flip(-1))]
            for which in (0, 1):
                pair = torch.maximum(up(plain[which], size), up(mirror[which], size))
                totals[which] = totals[which] + pair.relu()
        for which, total in enumerate(totals):
            low = total - total.amin((-2, -1), keepdim=True)
            totals[which] = low / (low.amax((-2, -1), keepdim=True) + 1e-5)
    return totals


def _cams(network, images):
    _, features, aux_features = encode(network.encoder, images)
    return [network.classifier(features), network.aux_classifier(aux_features)]


def patch_mask(cams, tags, high, low):
    """Labels of one image's patches: cams [C,h,w], tags [C]."""
    top, label = (cams * tags[:, None, None]).max(0)
    label = label + 1
    label[top <= high] = 255
    label[top <= low] = 0
    return label


def uncertain_positions(mask, keys):
    """URE's patches of one image, the random choice made by uniform numbers [2,h·w] (§4.7)."""
    width = mask.shape[1]

    def best(places, row, number):
        return sorted(places, key=lambda p: -float(keys[row, p[0] * width + p[1]]))[:number]
    found = losses.candidates(mask)
    inside = [(i, j) for i in range(mask.shape[0] - 6) for j in range(width - 6)]
    classes = [(i, j) for i, j in inside if 0 < mask[i + 3, j + 3] < 255]
    missing = max(0, 8 - len(found)) // 4
    return best(found, 0, 8) + best(classes if len(classes) >= missing else inside, 1, missing)


def contrast(patches, masks):
    """PTC with all pairs of an image's patches as matrices."""
    sums, numbers = [0.0, 0.0], [0, 0]
    for features, mask in zip(patches, masks, strict=True):
        flat, unit = mask.flatten(), losses.unit(features.flatten(1).T)
        known = (flat != 255)[:, None] & (flat != 255)[None] & ~torch.eye(len(flat)).bool()
        equal = flat[:, None] == flat[None]
        likeness = (unit @ unit.T).abs()
        for kind, chosen in enumerate((known & ~equal, known & equal)):
            sums[kind] = sums[kind] + (likeness * chosen).sum()
            numbers[kind] = numbers[kind] + chosen.sum()
    return 0.5 * (1 - sums[1] / (numbers[1] + 1)) + 0.5 * sums[0] / (numbers[0] + 1)


def segmentation(logits, targets):
    """Cross entropy of background and of foreground, one class of one image at a time."""
    sums, numbers = [0.0, 0.0], [0, 0]
    for scores, target in zip(logits, targets, strict=True):
        log = scores.log_softmax(0)
        for k in range(len(log)):
            chosen = target == k
            sums[k > 0] = sums[k > 0] - (log[k] * chosen).sum()
            numbers[k > 0] = numbers[k > 0] + chosen.sum()
    return sum(s / (n + 1e-6) for s, n in zip(sums, numbers, strict=True)) / 2


def training_terms(network, images, tags, objective, scales, keys, mark=lambda name: None,
                   by_position=False):
    """All terms of an early step (released options) and their weighted sum.

    `mark` is told the name of each part when it is done: CAM, labels, forward, labels, losses. With
    `by_position`, PTC and segmentation go through pairs of patches and pixels one after another.
    """
    loss, thresholds = objective.loss, objective.cam
    pairs, pixels = ((losses.contrast, losses.segmentation) if by_position
                     else (contrast, segmentation))
    cams, aux = cam_views(network, images, scales)
    mark("CAM")
    pictures = images * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)
    targets = torch.stack([labels.refined_label(
        picture.trunc().clamp(0, 255) / 255, cam * tag[:, None, None], tag, thresholds.high,
        thresholds.low,
        objective.par.dilations, thresholds.par_iterations)
        for picture, cam, tag in zip(pictures, cams, tags, strict=True)])
    mark("labels")
    tokens, features, aux_features = encode(network.encoder, images)
    refined = graph_tokens(network.graph, tokens, features)
    logits = network.classifier(features.amax((2, 3), keepdim=True)).flatten(1)
    aux_logits = network.aux_classifier(aux_features.amax((2, 3), keepdim=True)).flatten(1)
    scores = network.decoder(features)
    mark("forward")
    grid = up(aux, features.shape[-2:])
    masks = [patch_mask(*pair, thresholds.high, thresholds.low)
             for pair in zip(grid, tags, strict=True)]
    sure = torch.stack([patch_mask(*pair, thresholds.cre_high, thresholds.cre_low)
                        for pair in zip(grid, tags, strict=True)])
    places = [uncertain_positions(mask, k) for mask, k in zip(masks, keys, strict=True)]
    mark("labels")
    terms = {"cls": _soft_margin(logits, tags), "cls_aux": _soft_margin(aux_logits, tags),
             "mcl": sum(_decorrelation(image) for image in refined) / len(refined),
             "cre": losses.confident(refined, features, sure, tags, loss.temperature),
             "ure": losses.uncertain(refined, features, tags, places),
             "ptc": pairs(features, torch.stack(masks))}
    full = up(scores, images.shape[-2:])
    terms |= {"seg": pixels(full, targets), "energy": lattice.energy(
        full, pictures, targets, loss.energy_weight, loss.energy_sigma_rgb,
        loss.energy_sigma_xy)}
    terms["total"] = sum(objective.weights[name] * value for name, value in terms.items())
    mark("losses")
    return terms


def _soft_margin(logits, tags):
    return -(tags * F.logsigmoid(logits) + (1 - tags) * F.logsigmoid(-logits)).mean()


def _decorrelation(tokens):
    unit = losses.unit(tokens, 1e-12)
    return F.cross_entropy(unit @ unit.T / 0.07, torch.arange(len(unit)))
