# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Labels of any data set: names, bytes, indices, and integers that are ids."""

import datasets
import pytest

from hf_frozen_llm.tasks.classification import find_class_names, match_labels
from hf_frozen_llm.tasks.image_classification import ImageDataArguments


def rows_of(labels):
    return datasets.Dataset.from_dict({"label": labels})


def ids_of(names):
    return {name: index for index, name in enumerate(names)}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["bee", "ant", "bee"], ["ant", "bee"]),
        ([b"bee", b"ant", b"bee"], ["ant", "bee"]),
        ([2, 0, 5], ["0", "1", "2", "3", "4", "5"]),
        ([0, 999], [str(index) for index in range(1000)]),
    ],
)
def test_classes_and_their_labels(labels, names):
    rows = rows_of(labels)
    assert find_class_names(ImageDataArguments("x"), rows) == names
    matched = match_labels(ImageDataArguments("x"), rows, ids_of(names))
    expected = [
        label if isinstance(label, int) else ids_of(names)[str(label, "utf-8") if isinstance(label, bytes) else label]
        for label in labels
    ]
    assert [matched[label] for label in labels] == expected


@pytest.mark.parametrize("largest", [2_084_071, 200_000_000, 10**15])
def test_ids_are_no_indices(largest):
    """WordNet's numbers, dates: not as many classes."""
    args, rows = ImageDataArguments("x"), rows_of([largest, 7])
    message = (
        rf"holds 2 different integers, the largest {largest}: these are ids, no integers from 0\. Set class_names"
    )
    with pytest.raises(ValueError, match=message):
        find_class_names(args, rows)
    args.class_names = ["7", str(largest)]
    matched = match_labels(args, rows, ids_of(find_class_names(args, rows)))
    assert matched[7] == 0 and matched[largest] == 1 and 0 not in matched
    assert match_labels(args, rows_of([7]), ids_of(args.class_names))[7] == 0


def test_years_name_indices():
    matched = match_labels(ImageDataArguments("x"), rows_of([0, 1, 1]), ids_of(["1990", "2000"]))
    assert matched[0] == 0 and matched[1] == 1


@pytest.mark.parametrize("labels", [[["x", "y"], ["x"]], [0.5, 1.0], [None, "a"], [{"a": 1}, {"a": 2}]])
def test_other_columns_are_refused(labels):
    with pytest.raises(ValueError, match="column 'label' must hold class labels, integers or strings in every row"):
        find_class_names(ImageDataArguments("x"), rows_of(labels))
