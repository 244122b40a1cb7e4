"""Loss terms with plain loops and sums (method §4.6, §4.7)."""

from __future__ import annotations

import torch


def unit(x, eps=1e-8):
    return x / x.norm(dim=-1, keepdim=True).clamp(min=eps)


def confident(tokens, patches, mask, tags, temperature):
    """CRE with the exponentials as they are written."""
    total = 0.0
    for b in range(len(tags)):
        features = patches[b].flatten(1).T.detach()
        for k in torch.nonzero(tags[b]).flatten().tolist():
            s = torch.exp(features @ unit(tokens[b, k]) / temperature)
            losses = -torch.log(s / (s.sum() + 1e-4))
            chosen = mask[b].flatten() == k + 1
            total = total + losses[chosen].sum() / (chosen.sum() + 1e-4)
    return total / len(tags)


def confident_by_position(tokens, patches, mask, tags, temperature):
    """CRE, one patch at a time as well."""
    total = 0.0
    for b in range(len(tags)):
        features, labels = patches[b].flatten(1).T.detach(), mask[b].flatten().tolist()
        for k in torch.nonzero(tags[b]).flatten().tolist():
            token, positive = unit(tokens[b, k]), 0.0
            s = [torch.exp(feature @ token / temperature) for feature in features]
            below = sum(s) + 1e-4
            for value, label in zip(s, labels, strict=True):
                if label == k + 1:
                    positive = positive - torch.log(value / below)
            total = total + positive / (labels.count(k + 1) + 1e-4)
    return total / len(tags)


def candidates(mask):
    """Accepted (i, j) of one mask [h, w], in row-major order."""
    height, width = mask.shape
    region = torch.where(mask == 255, 1.0, torch.where(mask > 0, 2.0, 0.0))
    found = []
    for i in range(height - 6):
        for j in range(width - 6):
            window = region[i : i + 6, j : j + 6]
            if mask[i + 3, j + 3] == 255 and window.mean() >= 1.2:
                found.append((i, j))
    return found


def uncertain(tokens, patches, tags, positions):
    """URE; positions: for every image a list of (row, column)."""
    losses = []
    for b, places in enumerate(positions):
        n = unit(tokens[b]).detach()
        present = tags[b] > 0
        for y, x in places:
            z = (n @ unit(patches[b, :, y, x])).abs()
            pull = z[present].sum() / (present.sum() + 1)
            push = z[~present].sum() / ((~present).sum() + 1)
            losses.append(0.5 * (1 - pull) + 0.5 * push)
    return torch.stack(losses).mean()


def uncertain_by_class(tokens, patches, tags, positions):
    """URE, one class at a time as well."""
    losses = []
    for b, places in enumerate(positions):
        for y, x in places:
            pull, push, present, absent = 0.0, 0.0, 0, 0
            patch = unit(patches[b, :, y, x])
            for k in range(len(tags[b])):
                z = (unit(tokens[b, k].detach()) @ patch).abs()
                if tags[b, k] > 0:
                    pull, present = pull + z, present + 1
                else:
                    push, absent = push + z, absent + 1
            losses.append(0.5 * (1 - pull / (present + 1)) + 0.5 * push / (absent + 1))
    return torch.stack(losses).mean()


def uncertain_by_pair(tokens, patches, tags, positions):
    """URE as sums over pairs of a patch and a class: |cos| written out for each."""
    losses = []
    for b, places in enumerate(positions):
        number = int((tags[b] > 0).sum())
        for y, x in places:
            loss = 0.5
            for k in range(len(tags[b])):
                z = (unit(tokens[b, k].detach()) @ unit(patches[b, :, y, x])).abs()
                if tags[b, k] > 0:
                    loss = loss - 0.5 * z / (number + 1)
                else:
                    loss = loss + 0.5 * z / (len(tags[b]) - number + 1)
            losses.append(loss)
    return torch.stack(losses).mean()


def contrast(patches, labels):
    """PTC over all ordered pairs."""
    sums, numbers = [0.0, 0.0], [0, 0]
    for b in range(len(labels)):
        # Taken apart once: a slice for each pair would make a gradient of all patches each time.
        features, flat = unit(patches[b].flatten(1).T).unbind(0), labels[b].flatten().tolist()
        for i in range(len(flat)):
            for j in range(len(flat)):
                if i != j and 255 not in (flat[i], flat[j]):
                    kind = int(flat[i] == flat[j])
                    sums[kind] = sums[kind] + (features[i] @ features[j]).abs()
                    numbers[kind] += 1
    return 0.5 * (1 - sums[1] / (numbers[1] + 1)) + 0.5 * sums[0] / (numbers[0] + 1)


def segmentation(logits, labels):
    """Mean of the cross entropies over background and over foreground pixels."""
    rows = logits.log_softmax(dim=1).permute(0, 2, 3, 1).flatten(0, 2).unbind(0)
    flat = labels.flatten()
    parts = []
    for chosen in (labels == 0, (labels > 0) & (labels < 255)):
        places = torch.nonzero(chosen.flatten()).flatten().tolist()
        terms = [-rows[place][flat[place]] for place in places]
        parts.append(sum(terms) / (len(terms) + 1e-6) if terms else torch.zeros(()))
    return (parts[0] + parts[1]) / 2
