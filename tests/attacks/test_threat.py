import copy
import pickle

import pytest

from maep_lightning.attacks.threat import Epsilon, check_radius


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), (" 8 / 255 ", 8 / 255), ("0", 0.0)])
def test_epsilon__reads_what_people_write(text, value):
    assert Epsilon(text) == value


@pytest.mark.parametrize("clone", [Epsilon, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_epsilon__remembers_how_it_was_written(clone):
    assert str(clone(Epsilon("8/255"))) == "8/255"


@pytest.mark.parametrize("text", ["eight", "8/0", "-1/255", "nan", "inf", ""])
def test_epsilon__refuses_what_is_no_radius(text):
    with pytest.raises(ValueError, match="eps must be"):
        Epsilon(text)


@pytest.mark.parametrize(("eps", "norm"), [(8.0, "Linf"), (1.5, "Linf"), (36.0, "L2"), (128.0, "L2")])
def test_check_radius__hints_at_a_forgotten_division(eps, norm):
    with pytest.raises(ValueError, match=rf"larger than .* in {norm}\. Did you mean {eps:g}/255\? Write it so"):
        check_radius(eps, norm)


@pytest.mark.parametrize(("eps", "norm"), [(1.0, "Linf"), (5.0, "L2"), (12.2, "L2"), (60.0, "L1"), (2000.0, "L1")])
def test_check_radius__takes_what_is_in_use(eps, norm):
    check_radius(eps, norm)
