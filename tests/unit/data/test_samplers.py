"""Every batch is complete, of distinct images and the promised classes, and determined by (seed, epoch)."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from diml.data.class_groups import SmallClassesWarning, fitting_batch, usable_classes
from diml.data.samplers import build_sampler, sampler_names

BY_CLASS = [name for name in sampler_names() if name != "random"]


@st.composite
def problems(draw):
    """Labels (N,), classes of a batch, images a class; some classes may be too small."""
    sizes = draw(st.lists(st.integers(1, 7), min_size=2, max_size=9))
    per_class = draw(st.integers(1, 3))
    usable = sum(size >= per_class for size in sizes)
    assume(usable >= 1)
    classes = draw(st.integers(1, usable))
    assume(classes * per_class >= 2)
    labels = np.repeat(np.arange(len(sizes)) * 3 + 5, sizes)
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(labels))
    return labels[order], classes, per_class


def build(name: str, labels, classes: int, per_class: int, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallClassesWarning)
        return build_sampler(name, labels, batch_size=classes * per_class, per_class=per_class, **options)


def embeddings_of(labels, dim: int = 5) -> torch.Tensor:
    return torch.randn(len(labels), dim, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", BY_CLASS)
@given(problem=problems(), seed=st.integers(0, 5), epoch=st.integers(0, 5), known=st.booleans())
def test_batches_are_complete_and_balanced(name, problem, seed, epoch, known) -> None:
    labels, classes, per_class = problem
    sampler = build(name, labels, classes, per_class, seed=seed, batches_per_epoch=3)
    if known:
        sampler.update(torch.arange(len(labels)), embeddings_of(labels))
    batches = list(sampler.batches(epoch))
    assert len(batches) == len(sampler) == 3
    for batch in batches:
        assert all(type(index) is int for index in batch)
        assert len(set(batch)) == len(batch) == classes * per_class
        assert np.unique(labels[batch], return_counts=True)[1].tolist() == [per_class] * classes


@pytest.mark.parametrize("name", sampler_names())
@given(problem=problems(), seed=st.integers(0, 5))
def test_a_plan_follows_from_seed_and_epoch(name, problem, seed) -> None:
    labels, classes, per_class = problem
    assume(name != "random" or classes * per_class <= len(labels))
    np.random.seed(1)  # noqa: NPY002  # another state of the global stream must change nothing
    first, second = (build(name, labels, classes, per_class, seed=seed) for _ in range(2))
    torch.manual_seed(2)
    for epoch in (0, 1):
        for sampler in (first, second):
            sampler.update(torch.arange(len(labels)), embeddings_of(labels))
        plan = list(first.batches(epoch))
        assert plan == list(second.batches(epoch)) == list(first.batches(epoch))
        assert plan[1:] == list(itertools.islice(second.batches(epoch), 1, None))


@pytest.mark.parametrize("name", sampler_names())
def test_epochs_and_seeds_differ(name) -> None:
    labels = np.repeat(np.arange(12), 6)
    plans = []
    for seed in (0, 1, 2):
        sampler = build_sampler(name, labels, batch_size=12, seed=seed)
        sampler.update(torch.arange(72), embeddings_of(labels))
        plans += [list(sampler.batches(epoch)) for epoch in (0, 1, 2)]
    assert all(a != b for a, b in itertools.combinations(plans, 2))


@pytest.mark.parametrize("name", sampler_names())
def test_the_length_is_the_authors_by_default(name) -> None:
    labels = np.repeat(np.arange(10), 5)
    assert len(build_sampler(name, labels, batch_size=12)) == 50 // 12
    assert len(build_sampler(name, labels, batch_size=12, batches_per_epoch=2)) == 2
    with pytest.raises(ValueError, match="batches_per_epoch"):
        build_sampler(name, labels, batch_size=12, batches_per_epoch=0)


@given(images=st.integers(1, 40), batch_size=st.integers(1, 12), epoch=st.integers(0, 3))
def test_random_takes_every_image_once_and_drops_what_is_left(images, batch_size, epoch) -> None:
    assume(batch_size <= images)
    sampler = build_sampler("random", np.zeros(images, int), batch_size=batch_size)
    batches = list(sampler.batches(epoch))
    assert [len(batch) for batch in batches] == [batch_size] * (images // batch_size)
    flat = list(itertools.chain(*batches))
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(images))


def test_all_images_of_all_classes_come_equally_often() -> None:
    labels = np.repeat([0, 1, 2], [2, 4, 4])
    counts = np.bincount(
        [i for e in range(600) for b in build_sampler("class_balanced", labels, batch_size=4).batches(e) for i in b]
    )
    assert np.abs(counts[:2] / 800 - 1).max() < 0.1
    assert np.abs(counts[2:] / 400 - 1).max() < 0.15


@pytest.mark.parametrize("name", BY_CLASS)
def test_small_classes_are_omitted_with_one_warning(name) -> None:
    labels = np.array([0, 0, 1, 2, 2, 2, 3])
    with pytest.warns(SmallClassesWarning, match=r"2 of 4 classes \(2 images\) have fewer than per_class = 2") as said:
        sampler = build_sampler(name, labels, batch_size=4)
    assert len(said) == 1
    assert said[0].filename == __file__
    sampler.update(torch.arange(7), embeddings_of(labels))
    seen = {index for epoch in range(20) for batch in sampler.batches(epoch) for index in batch}
    assert seen == {0, 1, 3, 4, 5}


def test_two_images_a_class_are_a_pair_and_never_the_same_one_twice() -> None:
    """Defect 9: the released sampler draws with replacement, and pairs a photo with itself."""
    labels = np.repeat(np.arange(20), 2)
    for epoch in range(10):
        for batch in build_sampler("class_balanced", labels, batch_size=20).batches(epoch):
            assert all(labels[a] == labels[b] and a != b for a, b in zip(batch[::2], batch[1::2], strict=True))


def test_labels_may_be_a_tensor() -> None:
    sampler = build_sampler("class_balanced", torch.tensor([4, 4, 9, 9]), batch_size=4)
    assert sorted(next(sampler.batches(0))) == [0, 1, 2, 3]


def test_stateless_samplers_say_so() -> None:
    sampler = build_sampler("class_balanced", [0, 0, 1, 1], batch_size=4)
    assert not sampler.needs_embeddings
    assert sampler.state_dict() == {}
    sampler.load_state_dict({})
    with pytest.raises(ValueError, match="was the sampler changed"):
        sampler.load_state_dict({"plan": torch.zeros(1)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "fed"}, "did you mean 'fid'"),
        ({"batch_size": 5}, "need complete classes"),
        ({"batch_size": 0}, "need complete classes"),
        ({"batch_size": 8}, "need 4 classes of at least 2 images, got 3; use a batch_size of at most 6"),
        ({"batch_size": 8, "per_class": 8}, "use a smaller per_class"),
        ({"seed": -1}, "seed"),
        ({"labels": [0.5, 1.5]}, "labels"),
        ({"labels": []}, "labels"),
        ({"powr": 2}, "class_balanced: no option 'powr'"),
        ({"name": "d2_coreset", "powr": 2}, "did you mean 'power'"),
        ({"name": "d2_coreset", "softened": True}, "no option 'softened'"),
        ({"name": "d2_coreset", "power": -1}, "power"),
        ({"name": "fid", "comparisons": 0}, "comparisons"),
        ({"name": "disthist", "comparisons": 0}, "comparisons"),
        ({"name": "fid", "pool": 3}, "pool"),
        ({"name": "fid", "project_to": 0}, "project_to"),
        ({"name": "fid", "batch_size": 1, "per_class": 1}, "at least 2 images"),
        ({"name": "random", "batch_size": 7}, "batch_size: need 1 to 6"),
        ({"name": "random", "batch_size": 3, "batches_per_epoch": 3}, "fill 2 batches, got 3"),
    ],
)
def test_wrong_arguments_are_named(arguments, message) -> None:
    given_ = {"name": "class_balanced", "labels": [0, 0, 1, 1, 2, 2], "batch_size": 4} | arguments
    with pytest.raises(ValueError, match=message):
        build_sampler(given_.pop("name"), given_.pop("labels"), **given_)
    with pytest.raises(ValueError, match="epoch"):
        build_sampler("random", [0, 1], batch_size=1).batches(-1)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 8), st.sampled_from([1, 2, 4]))
def test_a_fitting_batch_can_be_filled_and_is_no_larger(sizes, classes, per_class):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    asked = classes * per_class
    if sum(size > 1 for size in sizes) < 2:
        with pytest.raises(ValueError, match="need two classes with two images each"):
            fitting_batch(labels, asked, per_class)
        return
    batch, each = fitting_batch(labels, asked, per_class)
    assert 1 <= each <= per_class
    assert each <= batch <= asked
    assert batch % each == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallClassesWarning)
        assert len(usable_classes(labels, batch, each)) >= batch // each  # and it raises nothing
    paired = [size for size in sizes if size > 1]
    assert sum(size >= each for size in paired) * 2 >= len(paired)  # most classes are used
    if min(sizes) >= per_class and len(sizes) >= classes:
        assert (batch, each) == (asked, per_class)
    if classes > 1:
        assert batch // each > 1


def test_a_fitting_batch_of_few_classes():
    assert fitting_batch([0] * 9 + [1] * 5, 64, 4) == (8, 4)
    assert fitting_batch([0] * 9 + [1] * 2, 64, 4) == (4, 2)
    assert fitting_batch(np.repeat(np.arange(20), 3), 64, 4) == (60, 3)
