"""The decoder's answers for the report are those that localize stores."""

from __future__ import annotations

import json

import numpy as np
import pytest

from more.data.seeds import decode_seed
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.inference.decoder_pictures import decoder_seeds
from more.inference.localize import Request, localize
from tests.data.sets import small_set
from tests.inference.test_localize import make_run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_set(tmp_path_factory.mktemp("images") / "set")


def test_answers_are_those_of_localize(tmp_path, data):
    run = make_run(tmp_path / "run")
    localize(run, data, tmp_path / "seeds", Request(("decoder",), "true", 0))
    stored, images = ShardSet(tmp_path / "seeds"), ShardSet(data)
    ids = [images.ids[row] for row in (7, 0, 3)]
    found = decoder_seeds(run, images, ids)
    assert list(found) == ids
    for name, item in found.items():
        wanted = decode_seed(stored.blob("seed", stored.index_of(name)))
        assert item.keys.tolist() == wanted.keys.tolist()
        np.testing.assert_allclose(item.maps.astype(float), wanted.maps.astype(float), atol=2e-3)


def test_none_where_no_decoder_was_trained_and_an_error_for_other_classes(tmp_path, data):
    run, images = make_run(tmp_path / "run"), ShardSet(data)
    (run / "run.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
    with pytest.raises(UserError, match="other classes"):
        decoder_seeds(run, images, images.ids[:1])
    settings = json.loads((run / "config.json").read_text())
    settings["loss"]["weights"]["seg"] = 0.0
    (run / "config.json").write_text(json.dumps(settings))
    assert decoder_seeds(run, images, images.ids[:1]) is None
    assert decoder_seeds(tmp_path, images, images.ids[:1]) is None
