import pytest
import torch

from maep_lightning.data.decoding import Decoder
from maep_lightning.data.layouts import scan
from maep_lightning.data.loader import ImageLoader
from maep_lightning.data.stream import StreamLoader, read_all

TRAINING = {"shuffle": True, "drop_last": True, "seed": 3}


@pytest.fixture
def files(photos):
    return scan(photos / "train", ("a", "b", "c"))


@pytest.fixture
def stream(files):
    return lambda **options: StreamLoader(files, Decoder(18, 16), 4, **options)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_read_all__keeps_the_order(files):
    decoder = Decoder(18, 16)
    data = read_all(files, decoder)
    assert data.labels.tolist() == [0] * 12 + [1] * 10 + [2] * 8
    assert torch.equal(data.images[17], decoder(files.path(17)))
    assert data.images.shape == (30, 3, 16, 16)


@pytest.mark.parametrize("options", [TRAINING, {}, TRAINING | {"rank": 1, "world_size": 2}])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream__gives_what_the_decoded_set_gives(files, stream, options, num_workers):
    resident = ImageLoader(read_all(files, Decoder(18, 16)), 4, **options)
    streamed = stream(num_workers=num_workers, **options)
    assert len(streamed) == len(resident)
    epochs = [list(resident) for _ in range(2)]
    assert not same(*epochs) or not options.get("shuffle")
    for epoch in epochs:
        assert same(list(streamed), epoch)


@pytest.mark.parametrize("world_size", [2, 3])
def test_stream__processes_share_the_global_batch_of_one(files, world_size):
    one = StreamLoader(files, Decoder(18, 16), 2 * world_size, **TRAINING)
    ranks = [
        StreamLoader(files, Decoder(18, 16), 2, rank=rank, world_size=world_size, **TRAINING)
        for rank in range(world_size)
    ]
    for (_, _, whole), *parts in zip(one, *ranks, strict=True):
        assert torch.equal(torch.stack([places for _, _, places in parts], dim=1).flatten(), whole)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream__resumes_behind_the_last_batch_given_out(stream, num_workers):
    unbroken = stream(**TRAINING)
    first, second = list(unbroken), list(unbroken)
    loader = stream(num_workers=num_workers, **TRAINING)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    other = stream(num_workers=num_workers, **TRAINING)
    other.load_state_dict(loader.state_dict())
    assert same(list(other), first[3:])
    assert same(list(other), second)


def test_stream__abandoned_epoch_leaves_nothing_behind(stream):
    loader = stream(num_workers=2, **TRAINING)
    next(iter(loader))
    loader.set_epoch(0)
    assert same(list(loader), list(stream(**TRAINING)))


def test_stream__leaves_the_global_stream_alone(stream):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(stream(**TRAINING))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.faults
@pytest.mark.parametrize("num_workers", [0, 1])
def test_stream__a_damaged_file_is_named_in_one_sentence(files, stream, num_workers):
    path = files.path(11)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"a_\d+\.JPEG is damaged and cannot be decoded") as caught:
        list(stream(num_workers=num_workers))
    assert "Traceback" not in str(caught.value)
