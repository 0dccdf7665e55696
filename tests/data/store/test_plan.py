"""Which lots are kept, packed again, dropped and added."""

from __future__ import annotations

import pytest

from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import FileVersion
from vae_astro.data.store import plan
from vae_astro.data.store.layout import Lot, lot_of
from vae_astro.data.store.plan import gone_names, plan_lots


def source(name: str, version: str = "1", part=None, n_bytes: int = 4000) -> Source:
    return Source((FileVersion(name, 10, version),), part, n_bytes)


def names(lots: list[Lot]) -> list[list[str]]:
    return [[source.name for source in lot.sources] for lot in lots]


@pytest.fixture(autouse=True)
def _two_in_a_lot(monkeypatch):
    monkeypatch.setattr(plan, "SMALLEST_LOT", 8000)


ABCDE = [source(name) for name in "abcde"]


def test_a_first_plan_shares_the_sources_out_in_their_order():
    assert names(plan_lots(ABCDE, [])) == [["a", "b"], ["c", "d"], ["e"]]


def test_a_plan_depends_on_nothing_but_its_arguments():
    assert plan_lots(ABCDE, []) == plan_lots(list(ABCDE), [])


def test_what_is_new_comes_last_and_leaves_the_lots_before_it_alone():
    before = plan_lots(ABCDE, [])
    after = plan_lots([source("0"), *ABCDE, source("f"), source("g")], before)
    assert after[:3] == before
    assert names(after[3:]) == [["0", "f"], ["g"]]


def test_a_changed_source_makes_another_lot_of_the_same_sources_in_its_place():
    before = plan_lots(ABCDE, [])
    now = [source(each.name, "2" if each.name == "c" else "1") for each in ABCDE]
    after = plan_lots(now, before)
    assert names(after) == names(before)
    assert [new == old for new, old in zip(after, before, strict=True)] == [True, False, True]
    assert after[1].name != before[1].name


def test_a_lost_source_leaves_the_others_of_its_lot():
    before = plan_lots(ABCDE, [])
    assert names(plan_lots([s for s in ABCDE if s.name not in "ac"], before)) == [
        ["b"],
        ["d"],
        ["e"],
    ]
    assert gone_names(ABCDE[1:], before) == {"a"}


def test_parts_of_one_file_are_sources_of_their_own():
    parts = [source("cube", part=(k, k + 10)) for k in range(0, 40, 10)]
    before = plan_lots(parts, [])
    assert [len(lot.sources) for lot in before] == [2, 2]
    assert plan_lots(parts[:2], before) == before[:1]
    assert gone_names(parts[:2], before) == set()


def test_no_lot_is_larger_than_a_sixteenth_or_the_largest(monkeypatch):
    many = [source(f"{k:04}", n_bytes=1000_000) for k in range(800)]
    sizes = [sum(s.n_bytes for s in lot.sources) for lot in plan_lots(many, [])]
    assert len(sizes) >= 16
    assert max(sizes) <= 50_000_000
    monkeypatch.setattr(plan, "LARGEST_LOT", 9_000_000)
    sizes = [sum(s.n_bytes for s in lot.sources) for lot in plan_lots(many, [])]
    assert max(sizes) <= 9_000_000


def test_sources_without_bytes_do_not_all_fall_into_one_lot():
    empty = [source(f"{k}", n_bytes=0) for k in range(100)]
    assert max(len(lot.sources) for lot in plan_lots(empty, [])) <= 8000 / 1024


def test_a_source_larger_than_a_lot_is_one_by_itself():
    lots = plan_lots([source("a"), source("b", n_bytes=10**9), source("c")], [])
    assert names(lots) == [["a"], ["b"], ["c"]]


def test_lots_to_pack_again_keep_their_sources_and_get_another_name():
    before = plan_lots(ABCDE, [])
    once = plan_lots(ABCDE, before, again=[before[1].name])
    assert names(once) == names(before)
    assert once[1].name == before[1].name + "r"
    assert once[1].digest == before[1].name
    twice = plan_lots(ABCDE, once, again=[once[1].name])
    assert twice[1].name == before[1].name + "rr"


def test_lots_that_lost_their_record_are_known_again_by_what_is_left_over():
    before = plan_lots(ABCDE, [])
    lost = [Lot(before[0].name, ()), before[1], Lot(before[2].name + "r", ())]
    found = plan_lots([*ABCDE, source("f")], lost)
    assert names(found) == [["a", "b"], ["c", "d"], ["e"], ["f"]]
    assert [lot.name for lot in found[:3]] == [before[0].name, before[1].name, before[2].name + "r"]


def test_a_lot_that_lost_its_record_and_a_source_is_packed_as_if_new():
    before = plan_lots(ABCDE, [])
    found = plan_lots(ABCDE[1:], [Lot(before[0].name, ()), *before[1:]])
    assert names(found) == [["c", "d"], ["e"], ["b"]]
    assert found[2] == lot_of([ABCDE[1]])
