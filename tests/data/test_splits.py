"""Splits are stratified, repeatable, and survive being written down."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from skipnets.data.splits import (
    Shares,
    SplitRow,
    _counts,
    check_fractions,
    cut,
    cut_folds,
    cut_groups,
    find_shares,
    read_split_rows,
    read_splits,
    write_splits,
)
from skipnets.errors import UserError

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
SHARES = Shares(FRACTIONS)


@given(
    sizes=st.lists(st.integers(3, 90), min_size=1, max_size=5),
    shares=st.sampled_from([(0.7, 0.15, 0.15), (0.1, 0.1, 0.8), (0.4, 0.3, 0.3), (0.98, 0.01, 0.01)]),
    seed=st.integers(0, 2**32),
)
def test_every_class_is_shared_out_and_none_goes_without(sizes, shares, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    splits = cut(labels, Shares(dict(zip(FRACTIONS, shares, strict=True))), seed)
    for label, size in enumerate(sizes):
        counts = [np.count_nonzero(splits[labels == label] == name) for name in FRACTIONS]
        assert sum(counts) == size
        assert min(counts) >= 1
        # At most one image from its share, but for those that minimum of one displaces.
        displaced = sum(max(1 - size * share, 0) for share in shares)
        assert all(
            abs(count - size * share) <= 1 + displaced for count, share in zip(counts, shares, strict=True)
        )


def test_hundred_images_are_split_exactly():
    splits = cut(np.repeat([0, 1], 100), SHARES, 0)
    assert [(splits[:100] == name).sum() for name in FRACTIONS] == [70, 15, 15]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # 5,000 of 50,000, as many of each class.
        ([5000] * 10, [500] * 10),
        # 200,000 images: 2.5 % of each class, but of a rare one ten or 15/85.
        ([199_600, 340, 60], [4990, 10, 10]),
        ([20_000, 17, 6], [3529, 3, 1]),  # below the most, so 15/85 as ever
        # A thousand classes get ten images each.
        ([80] * 1000, [10] * 1000),
    ],
)
def test_a_large_val_is_cut_to_what_chooses_an_epoch(sizes, expected):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    shares = find_shares("auto").of(["train", "val"])
    splits = cut(labels, shares, 0)
    found = [int((splits[labels == label] == "val").sum()) for label in range(len(sizes))]
    assert found == pytest.approx(expected, abs=1)
    explicit = cut(labels, find_shares((0.7, 0.15, 0.15)).of(["train", "val"]), 0)
    assert (explicit == "val").sum() == pytest.approx(len(labels) * 15 / 85, abs=0.5 * len(sizes))


def test_what_val_does_not_get_trains_and_test_stays():
    labels = np.repeat([0, 1, 2, 3], 25_000)
    splits = cut(labels, find_shares("auto"), 0)
    assert [(splits == name).sum() for name in FRACTIONS] == [80_000, 5000, 15_000]
    groups = np.arange(100_000) // 100
    splits = cut_groups(labels, groups, find_shares("auto"), 0)
    assert [(splits == name).sum() for name in FRACTIONS] == pytest.approx([80_000, 5000, 15_000], abs=200)


@given(
    size=st.integers(30, 400),
    shares=st.lists(st.floats(0.001, 1), min_size=2, max_size=3),
    least=st.lists(st.integers(1, 10), min_size=3, max_size=3),
)
def test_images_are_counted_out_as_one_by_one(size, shares, least):
    ideal = size * np.array(shares) / sum(shares)
    slow = np.array(least[: len(shares)])
    for _ in range(size - slow.sum()):
        slow[np.argmax(ideal - slow)] += 1
    assert _counts(ideal, np.array(least[: len(shares)])).tolist() == slow.tolist()


def test_the_seed_decides():
    labels = np.repeat([0, 1, 2], 30)
    np.testing.assert_array_equal(cut(labels, SHARES, 5), cut(labels, SHARES, 5))
    assert (cut(labels, SHARES, 5) != cut(labels, SHARES, 6)).any()
    # Another class changes nothing for those before it.
    np.testing.assert_array_equal(cut(labels, SHARES, 5)[:60], cut(labels[:60], SHARES, 5))


def grouped(groups: int, images: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and groups of images: groups of unequal sizes, each with classes of its own preference."""
    generator = np.random.default_rng(seed)
    members = generator.choice(groups, images, p=generator.dirichlet(np.full(groups, 2.0)))
    preference = generator.dirichlet(np.ones(classes), groups)
    labels = np.array([generator.choice(classes, p=preference[group]) for group in members])
    return labels, members.astype(str)


def furthest(labels: np.ndarray, splits: np.ndarray, shares: dict[str, float]) -> float:
    """How far the share of a class in a split is from what it should be, at most."""
    total = np.bincount(labels)
    return max(
        np.abs(np.bincount(labels[splits == name], minlength=len(total)) / total - share).max()
        for name, share in shares.items()
    )


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_whole_and_classes_have_their_shares(seed):
    labels, groups = grouped(80, 1500, 4, seed)
    splits = cut_groups(labels, groups, SHARES, seed)
    assert all(len(set(splits[groups == group])) == 1 for group in np.unique(groups))
    assert furthest(labels, splits, FRACTIONS) < 0.05
    np.testing.assert_array_equal(splits, cut_groups(labels, groups, SHARES, seed))
    assert (splits != cut_groups(labels, groups, SHARES, seed + 1)).any()


def test_equal_parts_are_about_as_even_as_scikit_learn_s():
    shares = dict.fromkeys(("train", "val", "test"), 1 / 3)
    ours, theirs = [], []
    for seed in range(8):
        labels, groups = grouped(30, 600, 3, seed)
        ours.append(furthest(labels, cut_groups(labels, groups, Shares(shares), seed), shares))
        folds = np.empty(len(labels), dtype="<U5")
        cutter = StratifiedGroupKFold(3, shuffle=True, random_state=seed)
        for name, (_, part) in zip(shares, cutter.split(labels, labels, groups), strict=True):
            folds[part] = name
        theirs.append(furthest(labels, folds, shares))
    assert np.mean(ours) < 1.1 * np.mean(theirs)


@pytest.mark.parametrize("fractions", [(1,), (0.5, 0.5), (0, 0.5, 0.5), (0.8, 0.3, -0.1), (0.5, 0.2, 0.2)])
def test_impossible_fractions(fractions):
    with pytest.raises(UserError, match=r"fractions=.*sum to 1"):
        check_fractions(fractions)


def test_fractions_are_shares_or_auto():
    assert find_shares("auto").fractions == pytest.approx(FRACTIONS)
    with pytest.raises(UserError, match=r"^fractions='half': must be auto, or the shares"):
        find_shares("half")


def test_write_and_read(tmp_path):
    rows = [
        SplitRow("a b/1,2.jpg", "a b", "train", "patient 1, left", 12, "0f"),
        SplitRow('größe/"x".png', 'größe, "so"', "val"),
        SplitRow("c/\udcff.png", "c", "test", "", -1, ""),
        SplitRow("cat\r/1.jpg\r", "c\r\nd", "test", "\r", -1, ""),
    ]
    write_splits(tmp_path / "splits.csv", rows)
    assert read_split_rows(tmp_path / "splits.csv") == rows
    assert read_splits(tmp_path / "splits.csv") == {row.path: (row.label, row.split) for row in rows}
    assert [path.name for path in tmp_path.iterdir()] == ["splits.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na,b\n", "lacks the column split; the first line must be path,label,split"),
        ("", "lacks the column path"),
        ("path,label,split\na,b\n", "line 2: must be path,label,split"),
        ("path,label,split\na,,train\n", "line 2: must be path,label,split, with path, label and split"),
        ("path,label,split\na,b,train,x\n", "line 2: must be"),
        (
            "path,label,split\na,b,train\nc,d,valid\n",
            "line 3: split='valid': must be one of train, val, test",
        ),
        ("path,label,split\na,b,train\na,b,val\n", "line 3: a is listed twice"),
        ('path,label,split\n"a,b,train\n', "not a CSV file"),
        ("path,label,split,group,size,hash\na,b,train,,many,0f\n", "line 2: size='many': must be a number"),
    ],
)
def test_bad_files_name_the_line(tmp_path, content, message):
    path = tmp_path / "splits.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_splits(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"absent\.csv: No such file"):
        read_splits(tmp_path / "absent.csv")


def test_files_of_version_0_1_are_read(tmp_path):
    path = tmp_path / "splits.csv"
    path.write_text("path,label,split\na/1.jpg,a,val\n")
    assert read_split_rows(path) == [SplitRow("a/1.jpg", "a", "val", group="", size=-1, hash="")]


def test_folds_of_several_labels_share_each_better_than_a_random_deal() -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random((300, 6)) < [0.03, 0.05, 0.1, 0.3, 0.5, 0.9]).astype(np.float32)
    labels[generator.random(labels.shape) < 0.1] = np.nan
    groups = generator.integers(0, 100, 300)
    _, groups = np.unique(groups, return_inverse=True)

    def unevenness(numbers: np.ndarray) -> float:
        present = np.stack([(labels[numbers == fold] == 1).sum(0) for fold in range(1, 6)])
        return float((np.abs(present - present.mean(0)) / present.sum(0)).mean())

    numbers = cut_folds(labels, 5, 0, groups=groups)
    assert set(numbers.tolist()) == {1, 2, 3, 4, 5}
    assert all(len(set(numbers[groups == group].tolist())) == 1 for group in range(groups.max() + 1))
    random = [unevenness(generator.integers(1, 6, groups.max() + 1)[groups]) for _ in range(200)]
    assert unevenness(numbers) < min(random)
    alone = cut_folds(labels, 5, 0)
    assert unevenness(alone) <= unevenness(numbers)
    assert np.ptp(np.bincount(alone)[1:]) <= 10
