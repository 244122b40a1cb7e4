"""What an update costs apart from arithmetic stays as low as it is (`step-count`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import run
from tests.research.step_count import counted, settings

# At most so many operations, with all terms: half of what they were for VOC, a third for COCO.
MOST = {"voc12_vit_b": 1560, "coco14_vit_b": 1580}


@pytest.mark.parametrize("crop", [112, pytest.param(448, marks=pytest.mark.slow)])
@pytest.mark.parametrize("recipe", MOST)
def test_operations_waits_and_uploads_of_an_update(recipe, crop):
    count, terms = counted(settings(ROOT / f"configs/{recipe}.py", [f"data.crop={crop}"]))
    assert terms["energy"] < 0 < min(terms[name] for name in ("cre", "ptc", "seg", "mcl"))
    assert 1000 < sum(count.operations.values()) <= MOST[recipe]
    assert sum(count.waits.values()) <= 1
    assert sum(count.uploads.values()) <= 7 and not count.blocking  # the batch's own tensors


def test_collectives_of_an_update_on_eight_ranks():
    """One for all counts, and the trainer's one for all means, however many passes; without ZeRO
    one for all gradients. ZeRO's own are those of DeepSpeed: norms and weights, group by group."""
    done = run("tests.research", "step-count", "--collectives", "--json",
               Path("configs/voc12_vit_b.py"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout[done.stdout.index("{"):])["voc12_vit_b"]
    assert len(found) == 6
    for passes in (1, 2):
        plain = found[f"ZeRO 0, {passes} passes"]
        for one in [plain["passes"], found[f"ZeRO 1, {passes} passes"]["passes"],
                    found[f"ZeRO 2, {passes} passes"]["passes"]]:
            assert {name for name in one if name != "MB"} == {"allreduce_"}
            assert one["allreduce_"] == 1 and one["MB"] < 1e-3
        assert plain["engine"]["allreduce_"] == 1
        assert found[f"ZeRO 1, {passes} passes"]["engine"]["allreduce_"] <= 6
