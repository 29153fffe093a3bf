import pytest
import torch

from maep_lightning.data import LabelledImages
from maep_lightning.data.loader import ImageLoader, stream_seed


def numbered(size):
    labels = torch.arange(size)
    return LabelledImages(labels.byte().view(-1, 1, 1, 1).expand(-1, 3, 2, 2), labels)


def places(loader):
    return [batch[2].tolist() for batch in loader]


def flat(batches):
    return [place for batch in batches for place in batch]


def training_loader(**changes):
    return ImageLoader(numbered(23), **({"batch_size": 4, "shuffle": True, "drop_last": True} | changes))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [13, 97, 100])
@pytest.mark.parametrize("batch_size", [2, 5, 50, 500])
def test_evaluation_sees_each_image_once(world_size, size, batch_size):
    loaders = [ImageLoader(numbered(size), batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    batches = [places(loader) for loader in loaders]
    assert sorted(place for rank in batches for place in flat(rank)) == list(range(size))
    assert {len(rank) for rank in batches} == {len(loaders[0])}
    assert all(0 < len(batch) <= batch_size for rank in batches for batch in rank)


def test_evaluation_in_one_process_keeps_the_order():
    assert flat(places(ImageLoader(numbered(97), 10))) == list(range(97))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_processes_share_no_image_and_have_equal_full_batches(world_size):
    loaders = [training_loader(rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [places(loader) for loader in loaders]
    seen = [place for rank in batches for place in flat(rank)]
    assert len(seen) == len(set(seen)) == 23 // world_size // 4 * 4 * world_size
    assert {len(batch) for rank in batches for batch in rank} == {4}
    assert {len(rank) for rank in batches} == {len(loaders[0])} == {23 // world_size // 4}


def test_batch_holds_what_lies_at_its_places():
    data = numbered(23)
    for images, labels, indices in training_loader():
        assert torch.equal(images, data.images[indices])
        assert torch.equal(labels, data.labels[indices])


def test_each_epoch_has_its_own_order_and_the_seed_repeats_it():
    first, second = training_loader(seed=3), training_loader(seed=3)
    epochs = [places(first) for _ in range(3)]
    assert len({str(epoch) for epoch in epochs}) == 3
    assert [places(second) for _ in range(3)] == epochs


def test_seeds_share_no_epoch():
    seen = {str(places(loader)) for seed in range(4) for loader in [training_loader(seed=seed)] * 4}
    assert len(seen) == 16


def test_set_epoch_names_the_order():
    loader = training_loader()
    epochs = [places(loader) for _ in range(4)]
    for epoch in (2, 0, 0, 3):
        loader.sampler.set_epoch(epoch)
        assert places(loader) == epochs[epoch]


@pytest.mark.parametrize("given_out", [0, 1, 3, 4])
def test_resumes_behind_the_last_batch(given_out):
    unbroken = training_loader()
    first, second = places(unbroken), places(unbroken)
    loader = training_loader()
    iterator = iter(loader)
    for _ in range(given_out):
        next(iterator)
    other = training_loader()
    other.load_state_dict(loader.state_dict())
    other.set_epoch(0)
    assert places(other) == first[given_out:]
    assert places(other) == second


def test_resuming_a_finished_epoch_begins_the_next():
    loader = training_loader()
    places(loader)
    expected = places(loader)
    loader = training_loader()
    places(loader)
    other = training_loader()
    other.load_state_dict(loader.state_dict())
    assert places(other) == expected


def test_abandoned_epoch_is_not_continued():
    loader = training_loader()
    next(iter(loader))
    assert len(places(loader)) == len(loader)


@pytest.mark.parametrize(("size", "options"), [(1, {"world_size": 2}), (7, {"drop_last": True, "world_size": 2})])
def test_too_few_images_are_refused(size, options):
    with pytest.raises(ValueError, match=f"{size} images cannot give batches of 4 to 2"):
        ImageLoader(numbered(size), 4, **options)


def test_stream_seeds_differ():
    assert len({stream_seed(a, b) for a in range(20) for b in range(20)}) == 400
