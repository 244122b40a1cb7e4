"""Parts by share and list: disjoint, exact, repeatable, independent of the input order."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from more.data.split_parts import SplitPart, assign, parse_parts
from more.errors import UserError

names = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=6)
weights = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@st.composite
def problems(draw):
    """Ids, two lists of some of them, shares that leave a part of the rest unused or nothing."""
    ids = draw(st.lists(names, min_size=20, max_size=60, unique=True))
    cut = draw(st.lists(st.integers(1, 5), min_size=2, max_size=2))
    listed = draw(st.permutations(ids))
    given_weights, unused = draw(weights), draw(st.integers(0, 5))
    total = sum(given_weights) + unused
    parts = [SplitPart(f"s{k}", f"s{k}", share=Fraction(weight, total))
             for k, weight in enumerate(given_weights)]
    first = SplitPart("l0", "l0", ids=tuple(listed[:cut[0]]))
    parts.insert(draw(st.integers(0, len(parts))), first)
    parts.append(SplitPart("l1", "l1", ids=tuple(listed[cut[0]:sum(cut)])))
    return ids, parts, draw(st.integers(0, 2**32 - 1))


@given(problems(), st.randoms())
@settings(max_examples=150, deadline=None)
def test_properties(problem, random):
    ids, parts, seed = problem
    free = len(ids) - sum(len(part.ids) for part in parts if part.ids is not None)
    try:
        made = assign(ids, parts, seed)
    except UserError as error:
        assert "no id is left" in error.message
        assert min(part.share for part in parts if part.share) * free < 1
        return
    assert list(made) == [part.name for part in parts]
    flat = [name for part in made.values() for name in part]
    assert len(flat) == len(set(flat)) and set(flat) <= set(ids)
    place = {name: k for k, name in enumerate(ids)}
    assert all(part == sorted(part, key=place.__getitem__) for part in made.values())
    for part in parts:
        if part.ids is not None:
            assert set(made[part.name]) == set(part.ids)
        else:
            assert abs(len(made[part.name]) - free * part.share) < 1
    if sum(part.share for part in parts if part.share) == 1:
        assert len(flat) == len(ids)
    shuffled = random.sample(ids, len(ids))
    again = assign(shuffled, parts, seed)
    assert {name: set(part) for name, part in again.items()} == \
        {name: set(part) for name, part in made.items()}


def test_exact_sizes_by_largest_remainder():
    def sizes(count, *texts):
        ids = [f"i{k}" for k in range(count)]
        return [len(part) for part in assign(ids, parse_parts(texts), 0).values()]

    assert sizes(1200, "train=0.8", "val=0.2") == [960, 240]
    assert sizes(10, "a=1/3", "b=1/3", "c=1/3") == [4, 3, 3]  # ties go to the first
    assert sizes(11, "a=0.7", "b=0.2", "c=0.1") == [8, 2, 1]
    assert sizes(10, "a=0.25") == [3] and sizes(10, "a=0.24") == [2]  # the unused rest counts too
    assert sizes(7, "a=1") == [7]


def test_the_parts_of_a_seed_stay_the_same():
    """Recorded values: a split must not change with a version of numpy."""
    ids = [f"image_{k:02d}" for k in range(12)]
    made = assign(ids, parse_parts(["train=1/2", "val=1/4"]), 7)
    assert made == {"train": [ids[k] for k in (0, 1, 2, 5, 7, 10)],
                    "val": [ids[k] for k in (3, 8, 11)]}
    assert made == assign(ids, parse_parts(["train=1/2", "val=1/4"]), 7)
    assert made != assign(ids, parse_parts(["train=1/2", "val=1/4"]), 8)


def test_lists_and_shares_together(tmp_path):
    (tmp_path / "val.txt").write_text("b\n\n d \nÜbung 写真\n", encoding="utf-8-sig")
    parts = parse_parts(["train=0.5", f"val={tmp_path / 'val.txt'}"])
    assert parts[1].ids == ("b", "d", "Übung 写真") and parts[0].recorded == "1/2"
    assert parts[1].recorded.startswith("3 ids, sha256 ")
    made = assign(["Übung 写真", "a", "b", "c", "d", "e", "f"], parts, 3)
    assert made["val"] == ["Übung 写真", "b", "d"] and len(made["train"]) == 2


@pytest.mark.parametrize(("texts", "message"), [
    ([], "--part: no part"), (["train"], "not NAME=SHARE"), (["=0.5"], "not NAME=SHARE"),
    (["train="], "not NAME=SHARE"), (["a/b=0.5"], "cannot be the name of a folder"),
    (["..=0.5"], "cannot be the name of a folder"), (["a=0"], "above 0 and at most 1"),
    (["a=-0.5"], "above 0 and at most 1"), (["a=80"], "above 0 and at most 1"),
    (["a=1/0"], "neither a share nor a file"), (["a=80%"], "neither a share nor a file"),
    (["a=nan"], "neither a share nor a file"), (["a=0.5", "a=0.2"], "'a' comes twice"),
    (["a=0.7", "b=0.31"], "add up to 1.01"), (["a=EMPTY"], "the list is empty"),
    (["a=TWICE"], "x twice in the list")])
def test_bad_texts_are_refused(tmp_path, monkeypatch, texts, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").write_text("\n \n")
    (tmp_path / "TWICE").write_text("x\ny\nx\n")
    with pytest.raises(UserError) as caught:
        parse_parts(texts)
    assert message in caught.value.message and caught.value.fix


def test_shares_of_ten_tenths_are_not_more_than_one():
    assert len(parse_parts([f"p{k}=0.1" for k in range(10)])) == 10


@pytest.mark.parametrize(("parts", "message"), [
    ([SplitPart("a", "a=l", ids=("x", "nobody"))], "a=l: 1 listed ids are not in the set: nobody"),
    ([SplitPart("a", "a=l", ids=("x",)), SplitPart("b", "b=m", ids=("y", "x"))],
     "b=m: 1 ids are also in the list of a: x"),
    ([SplitPart("a", "a=0.1", share=Fraction(1, 10))], "a=0.1: no id is left for this part"),
    ([SplitPart("a", "a=l", ids=("x", "y", "z")), SplitPart("b", "b=1", share=Fraction(1))],
     "b=1: no id is left")])
def test_impossible_parts_are_refused(parts, message):
    with pytest.raises(UserError) as caught:
        assign(["x", "y", "z"], parts, 0)
    assert message in caught.value.message and caught.value.fix
