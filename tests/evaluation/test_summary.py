import pytest
import torch

from maep_lightning.evaluation.ledger import Status
from maep_lightning.evaluation.summary import Outcome, wilson, worst


@pytest.mark.oracle
@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 7), (5, 10), (497, 1000), (10, 10)])
def test_wilson__as_scipy(successes, n):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def outcome(name, *statuses):
    return Outcome(name, torch.tensor([int(status) for status in statuses], dtype=torch.uint8))


def test_outcome__an_error_leaves_bounds_only():
    found = outcome("whitebox", Status.ROBUST, Status.BROKEN, Status.ERROR, Status.NOT_RUN)
    assert (found.complete, found.accuracy, found.bounds) == (False, None, (0.25, 0.75))
    low, high = found.interval
    assert low == wilson(1, 4)[0]
    assert high == wilson(3, 4)[1]


def test_worst__known_bad_beats_unknown_beats_good():
    robust, broken, error = Status.ROBUST, Status.BROKEN, Status.ERROR
    found = worst("worst", [outcome("a", robust, robust, error, error), outcome("b", robust, broken, robust, broken)])
    assert found.status.tolist() == [robust, broken, error, broken]
