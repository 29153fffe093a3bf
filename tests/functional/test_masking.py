import pytest
import torch

from maep_lightning.functional.masking import random_masking


def test_random_masking__at_ratio_0_returns_the_input_and_draws_nothing():
    tokens = torch.rand(2, 9, 4)
    before = torch.get_rng_state()
    kept, mask, ids_restore = random_masking(tokens, 0.0)
    assert torch.equal(kept, tokens)
    assert mask.sum() == 0
    assert torch.equal(ids_restore, torch.arange(9).expand(2, 9))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_random_masking__keeps_the_share_and_restores_the_order(ratio):
    tokens = torch.rand(5, 16, 3)
    kept, mask, ids_restore = random_masking(tokens, ratio)
    number = int(16 * (1 - ratio))
    assert kept.shape == (5, number, 3)
    assert torch.equal(mask.sum(1), torch.full((5,), 16.0 - number))
    padded = torch.cat([kept, torch.full((5, 16 - number, 3), -1.0)], dim=1)
    restored = padded.gather(1, ids_restore[:, :, None].expand(-1, -1, 3))
    visible = mask[:, :, None] == 0
    assert torch.equal(restored, torch.where(visible, tokens, torch.tensor(-1.0)))


def test_random_masking__each_patch_is_removed_equally_often():
    torch.manual_seed(0)
    _, mask, _ = random_masking(torch.zeros(20_000, 8, 1), 0.5)
    # 20,000 coin flips: standard deviation 0.0035, so 0.02 is far outside chance
    torch.testing.assert_close(mask.mean(0), torch.full((8,), 0.5), atol=0.02, rtol=0)


def test_random_masking__keeps_the_smallest_of_its_noise_or_of_what_it_draws():
    tokens, noise = torch.rand(2, 16, 1), torch.rand(2, 16)
    given = random_masking(tokens, 0.5, noise)[1]
    assert torch.equal(given, (noise > noise.median(dim=1, keepdim=True).values).float())
    torch.manual_seed(1)
    drawn = torch.rand(2, 16)
    torch.manual_seed(1)
    assert torch.equal(random_masking(tokens, 0.5)[1], random_masking(tokens, 0.5, drawn)[1])
    assert not torch.equal(random_masking(tokens, 0.5)[1], given)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 0.95])
def test_random_masking__refuses_ratios_that_leave_nothing(ratio):
    with pytest.raises(ValueError, match="leave at least one of 16 patches"):
        random_masking(torch.rand(1, 16, 1), ratio)
