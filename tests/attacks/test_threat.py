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


def test_check_radius__hints_at_a_forgotten_division():
    with pytest.raises(ValueError, match="Did you mean 8/255"):
        check_radius(8.0, "Linf")
    check_radius(3.0, "L2")
