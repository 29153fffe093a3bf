import os
import urllib.error
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from lightning.pytorch import Trainer
from torch import nn

from maep_lightning.data import ImageSource
from maep_lightning.models.classifiers import create_classifier, load_classifier, save_classifier
from maep_lightning.models.preprocessing import NORMALIZATIONS, normalization_of, unwrap
from maep_lightning.models.published import PUBLISHED
from maep_lightning.models.weights import write_weights
from maep_lightning.tasks.classification import ClassifierTraining


@pytest.mark.parametrize(("name", "millions"), [("resnet20", 0.27), ("resnet56", 0.85), ("wrn-28-10", 36.5)])
def test_create_classifier__has_the_published_number_of_parameters(name, millions):
    # He et al. 2016 table 6; Zagoruyko and Komodakis 2016 table 4
    model = create_classifier(name, 10)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01 * max(1, millions))


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn-16-4", "vgg16-bn", "mlperf-resnet8", "timm:resnet10t", "torchvision:squeezenet1_1"]
)
def test_create_classifier__takes_unit_range_images(name):
    model = create_classifier(name, 7).eval()
    first = next(module for module in model.modules() if not list(module.children()))
    assert type(first).__name__ == "Normalize"
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_resnet20__loads_the_names_of_the_public_weights():
    names = set(create_classifier("resnet20", 10).state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer3.2.conv2.weight", "layer2.0.bn1.bias", "linear.bias"} <= names
    assert len(names) == 19 * 6 + 2  # 19 convolutions with a BatchNorm of five tensors each, and the linear layer


def test_wrn__loads_the_names_of_the_public_weights():
    # those of RobustBench's standard WRN-28-10, whose file has a BatchNorm of five tensors before each convolution
    state = create_classifier("wrn-28-10", 10).state_dict()
    assert {"conv1.weight", "bn1.running_var", "fc.bias", "block3.layer.3.conv2.weight"} <= set(state)
    assert {"block1.layer.0.convShortcut.weight", "block1.layer.3.bn2.num_batches_tracked"} <= set(state)
    assert len(state) == 28 + 25 * 5 + 2


def test_vgg__loads_the_names_of_the_public_weights():
    state = create_classifier("vgg16-bn", 10).state_dict()
    assert {"features.0.weight", "features.1.running_mean", "features.40.bias", "classifier.6.weight"} <= set(state)
    assert state["classifier.0.weight"].shape == (512, 512)
    assert len(state) == 13 * 7 + 3 * 2


def test_save_and_load__one_file_says_what_it_is(tmp_path):
    model = create_classifier("resnet8", 4).eval()
    save_classifier(model, tmp_path / "c.safetensors", "resnet8", 4)
    again = load_classifier(tmp_path / "c.safetensors")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    with pytest.raises(ValueError, match=r"c\.safetensors tells 4 classes apart, and the data have 10"):
        load_classifier(tmp_path / "c.safetensors", num_classes=10)


@pytest.mark.parametrize(
    "name", ["resnet8", "resnet8,norm=half,size=16", "timm:resnet10t", "torchvision:squeezenet1_1"]
)
def test_save_and_load__the_file_records_the_normalisation(tmp_path, name):
    model = create_classifier(name, 4)
    save_classifier(model, tmp_path / "c.safetensors", name, 4)
    expected, found = (normalization_of(each) for each in (model, load_classifier(tmp_path / "c.safetensors")))
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.std, expected.std)


@pytest.mark.parametrize(
    ("name", "norm"),
    [("timm:resnet10t", "cifar10"), ("torchvision:squeezenet1_1", "imagenet"), ("resnet8", "imagenet")],
)
def test_load_classifier__older_files_keep_the_normalisation_of_their_time(tmp_path, name, norm):
    state = create_classifier(name, 4).state_dict()
    write_weights(tmp_path / "c.safetensors", state, {"kind": "classifier", "name": name, "num_classes": 4})
    layer = normalization_of(load_classifier(tmp_path / "c.safetensors"))
    statistics = (tuple(layer.mean.flatten().tolist()), tuple(layer.std.flatten().tolist()))
    assert statistics == tuple(pytest.approx(values) for values in NORMALIZATIONS[norm])


def test_load_classifier__takes_a_foreign_state_dict_by_name(tmp_path):
    model = create_classifier("resnet8", 10).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    again = load_classifier(tmp_path / "weights.pth", "resnet8", 10)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("key", ["net", "model_state_dict", "ema"])
def test_load_classifier__takes_the_only_state_dict_of_a_checkpoint(tmp_path, key):
    model = create_classifier("resnet8", 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    beside = {
        "acc": np.float64(0.9),
        "best": np.float32(0.9),
        "epoch": np.int64(3),
        "optimizer": optimizer.state_dict(),
    }
    torch.save({key: model.state_dict(), **beside}, tmp_path / "weights.pth")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_classifier(tmp_path / "weights.pth", "resnet8", 10)(images), model.eval()(images))


def test_load_classifier__asks_which_of_several_state_dicts_is_meant(tmp_path):
    state = create_classifier("resnet8", 10).state_dict()
    torch.save({"student": state, "teacher": state, "epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="several state dicts, student, teacher: save the one that is meant"):
        load_classifier(tmp_path / "weights.pth", "resnet8", 10)


@pytest.mark.parametrize(("mean", "std"), [("mu", "sigma"), ("normalize.mean", "normalize.std")])
def test_load_classifier__leaves_a_normalisation_in_the_file_out_only_if_it_is_in_use(tmp_path, mean, std):
    network = create_classifier("resnet8,norm=half", 10)
    state = {f"model.{key}": value for key, value in network.state_dict().items()}
    statistics = {mean: torch.full((1, 3, 1, 1), 0.5), std: torch.full((1, 3, 1, 1), 0.25)}
    torch.save(state | statistics, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=rf"{mean}, {std}.*not the one in use: add norm=0\.5:0\.5:0\.5/0\.25:"):
        load_classifier(tmp_path / "weights.pth", "resnet8", 10)
    loaded = load_classifier(tmp_path / "weights.pth", "resnet8,norm=0.5:0.5:0.5/0.25:0.25:0.25", 10)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), network.eval()(2 * images - 0.5))


def test_load_classifier__says_shortly_what_a_pickled_network_needs(tmp_path):
    torch.save(create_classifier("resnet8", 10), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"but maep_lightning.*torch\.save\(network\.state_dict\(\)") as raised:
        load_classifier(tmp_path / "weights.pth", "resnet8", 10)
    assert len(str(raised.value)) < 400


def test_load_classifier__explains_bad_files(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(create_classifier("resnet8", 10).state_dict(), path)
    with pytest.raises(ValueError, match="give its name"):
        load_classifier(path)
    with pytest.raises(ValueError, match="does not fit CifarResNet"):
        load_classifier(path, "resnet20", 10)
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="Only state dicts of tensors are loaded"):
        load_classifier(path, "resnet8", 10)
    path.write_bytes(b"not a file of weights")
    with pytest.raises(ValueError, match=r"weights\.pth"):
        load_classifier(path, "resnet8", 10)


def flip(path):
    """Another bit in the middle of the file, among the weights."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def break_directory(path):
    path.write_bytes(path.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x03"))


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("damage", [flip, cut, break_directory])
@pytest.mark.parametrize("name", ["weights.pth", "program.pt"])
def test_load_classifier__names_damaged_files(tmp_path, name, damage):
    path = tmp_path / name
    if name == "program.pt":
        torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), torch.rand(2, 3, 32, 32)).save(path)
    else:
        torch.save(create_classifier("mlperf-resnet8", 10).state_dict(), path)
    load_classifier(path, "mlperf-resnet8", 10)
    damage(path)
    with pytest.raises(ValueError, match=name):
        load_classifier(path, "mlperf-resnet8", 10)


def test_load_classifier__takes_files_without_checksums(tmp_path):
    model = create_classifier("mlperf-resnet8", 10)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model.state_dict(), tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_classifier(tmp_path / "weights.pth", "mlperf-resnet8", 10)(images), model(images))


@pytest.mark.faults
@pytest.mark.parametrize("damage", [flip, cut, break_directory])
def test_torchvision__names_the_damaged_file_of_its_cache(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    url = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url
    path = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    load_classifier("torchvision:squeezenet1_1")
    damage(path)
    with pytest.raises(ValueError, match=rf"torchvision:squeezenet1_1: .*{path.name} is damaged, delete it"):
        load_classifier("torchvision:squeezenet1_1")


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """The folder of weights that are found by name."""
    monkeypatch.setenv("MAEP_DATA_DIR", str(tmp_path))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def test_load_classifier__finds_public_files_by_name(weights):
    name = "cifar10_mlperftiny_resnet8"
    model = create_classifier(PUBLISHED[name].name, 10)
    torch.save(model.state_dict(), weights / f"{name}.pth")
    images = torch.rand(2, 3, 32, 32)
    for source in (name, f"{name}.pth", weights / f"{name}.pth"):
        assert torch.equal(load_classifier(source)(images), model(images))
    with pytest.raises(FileNotFoundError, match="Did you mean cifar10_mlperftiny_resnet8"):
        load_classifier("cifar10_mlperf_resnet8")


@pytest.mark.parametrize("source", ["cifar10_akamaster_resnet20", "cifar10_akamaster_resnet20.pth"])
def test_load_classifier__says_where_a_public_file_must_lie(weights, source):
    (weights / "cifar10_akamaster_resnet32.pth").touch()
    with pytest.raises(FileNotFoundError) as raised:
        load_classifier(source)
    text = str(raised.value)
    assert f"must lie in {weights}" in text
    assert "MAEP_DATA_DIR" in text
    assert "comes from https://github.com/akamaster" in text
    assert "Did you mean" not in text


@pytest.mark.parametrize("source", ["cifar10_akamaster_resnet20", "cifar10_akamaster_resnet32", "mine", "{}/mine.pth"])
@pytest.mark.parametrize("options", ["norm=half", "norm=half,size=16"])
def test_load_classifier__says_where_options_of_a_file_go(weights, source, options):
    source = source.format(weights)
    for name in ("cifar10_akamaster_resnet32", "mine"):
        torch.save(create_classifier("resnet32", 10).state_dict(), weights / f"{name}.pth")
    with pytest.raises(ValueError, match=r"go into classifier_name \(in a transfer study: name\)") as raised:
        load_classifier(f"{source},{options}", num_classes=10)
    assert str(raised.value).endswith(f"Give {source} as the classifier, and {options} there.")
    if source == "mine":
        assert load_classifier(source, f"resnet32,{options}", 10) is not None


def test_load_classifier__never_suggests_what_was_given(weights):
    (weights / "mine.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"no weights file mine, .* Did you mean mine\.ckpt\?"):
        load_classifier("mine")


def test_published__every_network_can_be_built():
    for known in PUBLISHED.values():
        logits = create_classifier(known.name, known.num_classes)(torch.rand(2, 3, 64, 64))
        assert logits.shape == (2, known.num_classes)


REAL = Path(os.environ.get("MAEP_DATA_DIR", "nowhere"))


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("cifar10")])
def test_real_public_files__reach_their_accuracy(name):
    if not (REAL / "cifar-10-batches-py").is_dir() or not (REAL / "weights" / f"{name}.pth").is_file():
        pytest.skip("MAEP_DATA_DIR does not hold CIFAR-10 and this file")
    images, labels = ImageSource("cifar10", str(REAL)).test_images(200)
    right = load_classifier(name, num_classes=10)(images.float() / 255).argmax(1) == labels
    assert right.float().mean() > 0.85  # 0.88 to 0.93 of the first 2,000


def test_load_classifier__takes_the_file_of_a_parallel_run(tmp_path):
    model = create_classifier("mlperf-resnet8", 10)
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "weights.pth")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_classifier(tmp_path / "weights.pth", "mlperf-resnet8", 10)(images), model(images))


@pytest.mark.parametrize("name", ["resnet8", "resnet8,size=16", "timm:resnet10t"])
def test_load_classifier__takes_a_lightning_checkpoint(tmp_path, name):
    task = ClassifierTraining(name, 4).eval()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_classifier(tmp_path / "last.ckpt", name, 4)(images), task.classifier(images))


@pytest.mark.parametrize(
    ("beside", "fits"),
    [
        ({"val_acc.correct": torch.tensor(3), "val_acc.total": torch.tensor(4)}, True),
        ({"mean": torch.rand(3, 1, 1)}, False),  # a normalisation that would be lost
        ({"teacher.conv1.weight": torch.rand(16, 3, 3, 3)}, False),
    ],
)
def test_load_classifier__leaves_out_nothing_but_single_numbers(tmp_path, beside, fits):
    state = {f"model.{key}": value for key, value in create_classifier("resnet8", 10).state_dict().items()}
    torch.save({"state_dict": state | beside}, tmp_path / "last.ckpt")
    with nullcontext() if fits else pytest.raises(ValueError, match="does not fit CifarResNet"):
        load_classifier(tmp_path / "last.ckpt", "resnet8", 10)


def test_load_classifier__takes_a_library_s_file_by_name(tmp_path):
    network = timm.create_model("resnet10t", num_classes=5).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    images = torch.rand(2, 3, 32, 32)
    for norm in ("half", "imagenet"):
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALIZATIONS[norm])
        loaded = load_classifier(tmp_path / "weights.pth", f"timm:resnet10t,norm={norm}", 5)
        assert torch.equal(loaded(images), network((images - mean) / std))


def test_options__normalisation_and_size_are_kept_by_the_file(tmp_path):
    name = "resnet8,norm=0.5:0.4:0.3/0.2,size=16"
    model = create_classifier(name, 4).eval()
    save_classifier(model, tmp_path / "c.safetensors", name, 4)
    images = torch.full((2, 3, 32, 32), 0.4)
    plain = create_classifier("resnet8,norm=none", 4).eval()
    plain.load_state_dict(model.network.state_dict())
    expected = plain(torch.tensor([-0.5, 0, 0.5]).view(1, 3, 1, 1).expand(2, 3, 16, 16))
    torch.testing.assert_close(load_classifier(tmp_path / "c.safetensors")(images), expected)


@pytest.mark.parametrize(
    "name", ["resnet8", "resnet8,size=16", "timm:resnet10t,drop_rate=0.1", "cifar10_mlperftiny_resnet8"]
)
def test_given_name__changes_normalisation_and_size_of_what_says_its_own(weights, name):
    if name in PUBLISHED:
        source, network = weights / f"{name}.pth", PUBLISHED[name].name
        model = create_classifier(network, 10).eval()
        torch.save(model.state_dict(), source)
    else:
        source, network = weights / "c.safetensors", name.partition(",")[0]
        model = create_classifier(name, 10).eval()
        save_classifier(model, source, name, 10)
    expected = create_classifier(f"{network},norm=half,size=8", 10).eval()
    unwrap(expected).load_state_dict(unwrap(model).state_dict())
    images = torch.rand(2, 3, 32, 32)
    for given in ("norm=half,size=8", f"{network},norm=half,size=8"):
        assert torch.equal(load_classifier(source, given, 10)(images), expected(images))
    for given in (None, network):
        assert torch.equal(load_classifier(source, given, 10)(images), model(images))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("wrn-28-10", r"is timm:resnet10t, and the given name says wrn-28-10: leave the name out"),
        ("resnet10t", r"is timm:resnet10t, and the given name says resnet10t"),
        ("norm=half,drop_rate=0.2", "a given name can change its norm and size, not drop_rate"),
    ],
)
def test_given_name__is_refused_where_it_could_not_be_followed(tmp_path, given, message):
    name = "timm:resnet10t,drop_rate=0.1"
    save_classifier(create_classifier(name, 4), tmp_path / "c.safetensors", name, 4)
    with pytest.raises(ValueError, match=message):
        load_classifier(tmp_path / "c.safetensors", given)
    load_classifier(tmp_path / "c.safetensors", name)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:vit_b_32"])
def test_size__is_asked_for_where_a_network_has_a_fixed_one(name):
    options = {"timm:vit_tiny_patch16_224": ",depth=1", "torchvision:vit_b_32": ""}
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match="add an option such as size=224"):
        create_classifier(name + options[name], 10).eval()(images)
    assert create_classifier(f"{name}{options[name]},size=224", 10).eval()(images).shape == (1, 10)


@pytest.mark.parametrize("version", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_torchvision__fetches_the_weights_that_are_named(monkeypatch, version):
    network, fetched = torchvision.models.mobilenet_v2().eval(), []

    def get_state_dict(self, *args, **kwargs):
        fetched.append(self)
        return network.state_dict()

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", get_state_dict)
    loaded = load_classifier(f"torchvision:mobilenet_v2@{version}")
    assert fetched == [torchvision.models.MobileNet_V2_Weights[version]]
    images = torch.rand(1, 3, 64, 64)
    crop = fetched[0].transforms()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (crop.mean, crop.std))
    torch.testing.assert_close(loaded(images), network((images - mean) / std))
    ((size, crop_pct, interpolation),) = loaded.framings
    assert [size] == crop.crop_size
    assert [round(size / crop_pct)] == crop.resize_size
    assert interpolation == crop.interpolation.value
    with pytest.raises(ValueError, match=r"1000 classes apart, and the data have 10\..*label_space imagenet"):
        load_classifier(f"torchvision:mobilenet_v2@{version}", num_classes=10)


def test_timm__fetches_its_default_weights(monkeypatch):
    create, asked = timm.create_model, []

    def create_model(name, pretrained, **options):
        asked.append((name, pretrained))
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    loaded = load_classifier("timm:resnet10t.c3_in1k")
    assert loaded(torch.rand(1, 3, 64, 64)).shape == (1, 1000)
    stated = timm.get_pretrained_cfg("resnet10t.c3_in1k")
    assert loaded.framings == (
        (stated.input_size[-1], stated.crop_pct, stated.interpolation),
        (stated.test_input_size[-1], stated.test_crop_pct, stated.interpolation),
    )
    assert asked == [("resnet10t.c3_in1k", True)]
    with pytest.raises(ValueError, match="tells 1000 classes apart, and the data have 10"):
        load_classifier("timm:resnet10t.c3_in1k", num_classes=10)


def test_library__without_a_network_says_what_to_do(monkeypatch):
    def get_state_dict(self, *args, **kwargs):
        raise urllib.error.URLError("offline")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", get_state_dict)
    with pytest.raises(FileNotFoundError, match=r"could not be fetched.*offline.*give the file"):
        load_classifier("torchvision:squeezenet1_1")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:resnet50@IMAGENET1K_V3", "there are IMAGENET1K_V1, IMAGENET1K_V2"),
        ("torchvision:resnet5", "Did you mean resnet"),
        ("timm:resnet50@V1", "names weights after a dot"),
        ("timm:resnet5", "Did you mean resnet50"),
        (
            "timm:resnet50.a1_in1kk",
            r"\(a1_in1kk\) for resnet50\. Did you mean resnet50\.a1_in1k or resnet50\.a1h",
        ),
        ("timm:resnet18,pretraned=True", "unexpected keyword argument 'pretraned'\\.$"),
    ],
)
def test_load_classifier__explains_unknown_names_of_libraries(source, message):
    with pytest.raises(ValueError, match=message):
        load_classifier(source)


@pytest.mark.parametrize(
    ("source", "intended"),
    [
        ("tim:resnet50", "timm:resnet50"),
        ("TIMM:resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("timm/resnet50,norm=half", "timm:resnet50,norm=half"),
        ("torchvison:resnet50", "torchvision:resnet50"),
        ("pyhton:module:make", "python:module:make"),
    ],
)
def test_load_classifier__explains_misspelt_libraries(source, intended):
    with pytest.raises(FileNotFoundError, match=rf"Did you mean {intended}\?"):
        load_classifier(source)
    if not source.startswith("py"):
        with pytest.raises(ValueError, match=rf"Did you mean {intended}\?"):
            create_classifier(source, 10)


def test_load_classifier__folder_is_no_library():
    with pytest.raises(FileNotFoundError) as raised:
        load_classifier("tim/resnet50.pth")
    assert "timm:resnet50" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet21", "resnet20"),
        ("resnet20,depth=3", "has the options norm and size"),
        ("timm:resnet10t,depht=3", "depht"),
        ("torchvision:squeezenet1_1@DEFAULT", "names weights that a library fetches"),
    ],
)
def test_create_classifier__explains_mistakes(name, message):
    with pytest.raises(ValueError, match=message):
        create_classifier(name, 10)
