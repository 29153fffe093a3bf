import pytest
import torch

from maep_lightning.evaluation.ledger import Ledger, LedgerError, Unit


def unit(**changes):
    values = {
        "rung": "whitebox",
        "attack": "square",
        "chunk": 3,
        "context": "c" * 64,
        "data": "d" * 64,
        "seed": 5,
        "indices": torch.tensor([24, 25]),
        "status": torch.tensor([0, 1], dtype=torch.uint8),
        "prediction": torch.tensor([1, 2]),
        "margin": torch.tensor([0.5, -0.25]),
        "right": torch.tensor([1, 0], dtype=torch.int32),
        "stored": torch.tensor([False, True]),
        "adversarial": torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
        "notes": {"warnings": ["w"], "splits": 1},
    }
    return Unit(**(values | changes))


def test_unit__round_trip_and_same_bytes():
    content = unit().to_bytes()
    again = Unit.from_bytes(content, "x")
    assert again.to_bytes() == content == unit().to_bytes()
    assert torch.equal(again.adversarial, unit().adversarial)
    assert again.notes == unit().notes


@pytest.mark.faults
def test_unit__any_changed_byte_is_noticed():
    content = unit().to_bytes()
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= 4
        with pytest.raises(LedgerError):
            Unit.from_bytes(bytes(changed), "x")


def test_ledger__hash_is_of_names_and_bytes(tmp_path):
    first, second = Ledger(tmp_path / "a"), Ledger(tmp_path / "b")
    for ledger, chunks in ((first, (3, 4)), (second, (4, 3))):
        for chunk in chunks:
            ledger.write(unit(chunk=chunk))
    assert first.hash() == second.hash()
    (tmp_path / "a" / "leftover.tmp").write_text("x")
    assert first.hash() == second.hash()
    second.drop("whitebox", "square", 4)
    assert first.hash() != second.hash()
