"""What bf16 weights save of an update under bf16 autocast: casts."""

from __future__ import annotations

import json

from tests.processes import run


def test_bf16_weights_need_a_third_of_the_casts_of_autocast():
    """VOC: 225 of 732 under ZeRO 1. ZeRO 2 casts each gradient twice: 397."""
    done = run("tests.research", "step-count", "configs/voc12_vit_b.py", "--casts", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout[done.stdout.index("{"):])["voc12_vit_b"]
    for stage, share in ((1, 0.33), (2, 0.56)):
        assert 0 < found[f"bf16_weights, ZeRO {stage}"] <= share * found[f"bf16, ZeRO {stage}"]
