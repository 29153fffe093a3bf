import pytest
from torch import nn

from maep_lightning.data import ImageSource
from maep_lightning.evaluation.framing import check_framing
from maep_lightning.models.preprocessing import NORMALIZATIONS, Framing, NormalizedClassifier, ResizedClassifier

CUBIC = Framing(224, 0.95, "bicubic")


def classifier(*framings):
    model = NormalizedClassifier(nn.Flatten(), *NORMALIZATIONS["imagenet"])
    model.framings = framings
    return model


@pytest.mark.parametrize(
    ("framings", "given", "options"),
    [
        ([CUBIC], {}, "--data.crop_pct 0.95 and --data.interpolation bicubic"),
        ([CUBIC], {"interpolation": "bicubic"}, "--data.crop_pct 0.95"),
        ([CUBIC], {"crop_pct": 0.95}, "--data.interpolation bicubic"),
        ([CUBIC], {"crop_pct": 0.9546, "interpolation": "bicubic"}, None),
        ([CUBIC], {"crop_pct": 1}, None),
        ([CUBIC._replace(crop_pct=1)], {"crop_pct": 1}, "--data.interpolation bicubic"),
        ([Framing(224, 224 / 232, "bilinear")], {}, "--data.crop_pct 0.9655"),
        ([Framing(224, 224 / 232, "bilinear")], {"crop_pct": 0.9655}, None),
        ([CUBIC], {"image_size": 160}, None),
        ([Framing(160, 0.875, "bilinear"), CUBIC], {}, "--data.crop_pct 0.95 and --data.interpolation bicubic"),
        ([Framing(160, 0.875, "bilinear"), CUBIC], {"image_size": 160}, None),
        ([], {}, None),
    ],
)
def test_check__names_the_options_that_differ(framings, given, options):
    warnings = check_framing(classifier(*framings), ImageSource("imagenette", **given).framing)
    assert [text.rpartition("give ")[2] for text in warnings] == ([] if options is None else [f"{options}."])


def test_check__says_what_is_and_what_should_be():
    (warning,) = check_framing(classifier(CUBIC), ImageSource("imagenet").framing)
    assert "crop_pct of 0.95, bicubic, and get them with 0.875, bilinear: give " in warning


def test_check__has_nothing_to_say_of_other_images_and_sizes():
    assert check_framing(classifier(CUBIC._replace(size=32)), ImageSource("cifar10").framing) == ()
    assert check_framing(ResizedClassifier(classifier(CUBIC), 224), ImageSource("imagenet").framing) == ()
