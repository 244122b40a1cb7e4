"""GCR against the release: scores, choice of neighbours, output and gradients."""

import numpy as np
import pytest
import torch

from more.method.gcr import GraphCategoryRepresentation
from more.method.released_names import from_released, released_name
from tests.parity.compare import close, equal
from tests.parity.released import tensors

TOL = 1e-4
CASES = ["main", "odd", "two", "single"]


def layer(arrays) -> GraphCategoryRepresentation:
    state = from_released({"graph_layer." + name: tensor
                           for name, tensor in tensors(arrays, "param.").items()})
    state = {name.removeprefix("graph."): tensor for name, tensor in state.items()}
    gcr = GraphCategoryRepresentation(state["head.weight"].shape[0])
    gcr.load_state_dict(state)
    return gcr


@pytest.mark.parametrize("case", CASES)
def test_scores_and_chosen_neighbours(parity, case):
    arrays = parity("gcr")
    gcr = layer(arrays)
    tokens = torch.from_numpy(arrays[f"{case}.cls_tokens"])
    patches = torch.from_numpy(arrays[f"{case}.patch_tokens"])
    scores = gcr.scores(gcr.head(tokens), gcr.tail(torch.cat([tokens, patches], 1)))
    close(scores, arrays[f"{case}.attn_logit"], TOL)
    chosen = scores.topk(tokens.shape[1] // 2, dim=-1).indices.sort(-1).values
    equal(chosen, arrays[f"{case}.topk_index_sorted"])


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients(parity, case):
    arrays = parity("gcr")
    gcr = layer(arrays)
    tokens = torch.from_numpy(arrays[f"{case}.cls_tokens"]).requires_grad_()
    patches = torch.from_numpy(arrays[f"{case}.patch_tokens"]).requires_grad_()
    out = gcr(tokens, patches)
    close(out, arrays[f"{case}.out"], TOL)
    (out * torch.from_numpy(np.array(arrays[f"{case}.probe"]))).sum().backward()
    close(tokens.grad, arrays[f"grad.{case}.cls_tokens"], TOL)
    assert (patches.grad is None) == bool(arrays[f"gradnone.{case}.patch_tokens"])
    for name, parameter in gcr.named_parameters():
        theirs = released_name("graph." + name).removeprefix("graph_layer.")
        key = f"{case}.param.{theirs}"
        assert (parameter.grad is None) == bool(arrays["gradnone." + key]), name
        close(parameter.grad, arrays["grad." + key], TOL, name=name)
