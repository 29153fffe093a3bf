import sys

import pytest
import torch
from torch import nn

from maep_lightning.attacks.target import Target
from maep_lightning.evaluation import fingerprint
from maep_lightning.models.classifiers import load_classifier

MODULE = """
import torch
from torch import nn

instance = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
number = 3

class Network(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.linear = nn.Linear(192, classes)

    def forward(self, images):
        return self.linear(images.flatten(1))

def make():
    return Network(5).train()

def brightness(images):
    return images.mean(dim=(2, 3))

def make_function():
    return brightness

def make_resized():
    from maep_lightning.models.preprocessing import ResizedClassifier
    return ResizedClassifier(Network(), 8)

def fails():
    return 3
"""


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3)).eval()


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_classifiers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def save(network, path, dtype=torch.float32):
    example = torch.rand(2, 3, 8, 8, dtype=dtype)
    if path.suffix == ".pt2":
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, path)
    else:
        torch.jit.trace(network, example).save(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["scripted.pt", "exported.pt2"])
def test_program__gives_logits_and_gradients_of_the_network(network, tmp_path, name):
    save(network, tmp_path / name)
    loaded = nn.Sequential(load_classifier(tmp_path / name)).train().eval()
    images = torch.rand(5, 3, 8, 8, requires_grad=True)
    target = Target(loaded)  # which refuses a network in training mode
    results = [
        (logits, torch.autograd.grad(logits[:, 0].sum(), images)[0]) for logits in (target(images), network(images))
    ]
    torch.testing.assert_close(*results)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_program__another_file_has_another_fingerprint(network, tmp_path):
    class Negated(nn.Sequential):
        def forward(self, images):
            return -super().forward(images)

    for name, one in (("a.pt", network), ("b.pt", Negated(*network))):
        save(one.eval(), tmp_path / name)
    first, second = (load_classifier(tmp_path / name) for name in ("a.pt", "b.pt"))
    assert fingerprint.of_architecture(first) != fingerprint.of_architecture(second)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_program__takes_a_normalisation(network, tmp_path):
    save(network, tmp_path / "scripted.pt")
    images = torch.rand(2, 3, 8, 8)
    loaded = load_classifier(tmp_path / "scripted.pt", "norm=half")
    torch.testing.assert_close(loaded(images), network(2 * images - 1))
    with pytest.raises(ValueError, match="can change its norm and size, not depth"):
        load_classifier(tmp_path / "scripted.pt", "depth=3")


def test_program__says_that_the_batch_must_be_dynamic(network, tmp_path):
    torch.export.save(torch.export.export(network, (torch.rand(2, 3, 8, 8),)), tmp_path / "exported.pt2")
    with pytest.raises(ValueError, match=r"does not take images \(5, 3, 8, 8\).*dynamic batch"):
        load_classifier(tmp_path / "exported.pt2")(torch.rand(5, 3, 8, 8))


class FixedBatch(nn.Module):
    """Two images at once."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images).view(2, 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_program__traced_for_one_batch_says_so_without_the_traceback_of_torchscript(network, tmp_path):
    save(FixedBatch(network).eval(), tmp_path / "scripted.pt")
    with pytest.raises(ValueError, match=r"does not take images \(5, 3, 8, 8\): .*dynamic batch") as raised:
        load_classifier(tmp_path / "scripted.pt")(torch.rand(5, 3, 8, 8))
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_program__failure_that_is_about_no_shape_stays_what_it_is(network, tmp_path):
    save(network, tmp_path / "scripted.pt")
    with pytest.raises(RuntimeError, match="type"):  # as where gradients are compared in float64
        load_classifier(tmp_path / "scripted.pt")(torch.rand(5, 3, 8, 8, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["scripted.pt", "exported.pt2"])
def test_program__other_precision_is_refused_by_file(network, tmp_path, name, dtype):
    save(network.to(dtype), tmp_path / name, dtype)
    with pytest.raises(ValueError, match=rf"{name} has weights in {dtype}, .*call \.float\(\) on the network"):
        load_classifier(tmp_path / name)


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_program__damaged_file_is_named(network, tmp_path):
    path = tmp_path / "scripted.pt"
    save(network, path)
    path.write_bytes(path.read_bytes().replace(b"PK\x03\x04", b"PK\x03\x05"))
    with pytest.raises(ValueError, match=r"scripted\.pt"):
        load_classifier(path)


@pytest.mark.parametrize(
    ("where", "classes"),
    [("instance", 3), ("Network", 3), ("Network,classes=7", 7), ("make", 5), ("brightness", 3), ("make_function", 3)],
)
def test_python__takes_networks_and_what_makes_them(module, where, classes):
    classifier = load_classifier(f"python:my_classifiers:{where}")
    assert classifier(torch.rand(2, 3, 8, 8)).shape == (2, classes)
    assert not any(m.training for m in classifier.modules())


def test_python__options_before_it_are_ours(module):
    images = torch.rand(2, 3, 16, 16)
    classifier = load_classifier("python:my_classifiers:brightness,norm=half,size=8")
    torch.testing.assert_close(classifier(torch.full_like(images, 0.75)), torch.full((2, 3), 0.5))


def test_python__a_given_name_may_have_these_options_too(module):
    images = torch.full((2, 3, 16, 16), 0.75)
    classifier = load_classifier("python:my_classifiers:brightness,norm=0.25/1", "norm=half,size=8")
    torch.testing.assert_close(classifier(images), torch.full((2, 3), 0.5))
    with pytest.raises(ValueError, match="and the given name says resnet20"):
        load_classifier("python:my_classifiers:brightness", "resnet20")


@pytest.mark.parametrize(
    "where",
    [
        "edited:instance",
        "edited:Network",
        "edited:make",
        "edited:brightness,norm=half",
        "edited:make_function",
        "edited:make_resized,size=8",
        "shim:make",
    ],
)
def test_python__edited_code_has_another_fingerprint(tmp_path, monkeypatch, where):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shim.py").write_text("from edited import make")
    edited = MODULE.replace("self.linear(images", "self.linear(-images").replace("images.mean", "-images.mean")
    prints = []
    for code in (MODULE, MODULE, edited):
        for name in ("edited", "shim"):
            sys.modules.pop(name, None)
        (tmp_path / "edited.py").write_text(code)
        prints.append(fingerprint.of_architecture(load_classifier(f"python:{where}")))
    assert prints[0] == prints[1] != prints[2]


HIDDEN = """
import torch
from torch import nn

class Ordered(nn.Module):
    def __init__(self, order=0):
        super().__init__()
        self.order = order

    def forward(self, images):
        return images.mean(dim=(2, 3)).roll(self.order, 1)

class Callable:
    def __init__(self, order=0):
        self.order = order

    def __call__(self, images):
        return images.mean(dim=(2, 3)).roll(self.order, 1)

def one():
    return Ordered(1)

def two():
    return Ordered(2)

here, there = Ordered(1), Ordered(2)
"""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Ordered,order=0", "Ordered,order=2"),
        ("Ordered", "Ordered,order=2"),
        ("Callable,order=0", "Callable,order=2"),
        ("one", "two"),
        ("here", "there"),
    ],
)
def test_python__what_an_object_keeps_to_itself_is_in_the_fingerprint(tmp_path, monkeypatch, first, second):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hidden_state.py").write_text(HIDDEN)
    names = [f"python:hidden_state:{where}" for where in (first, first, second)]
    prints = [fingerprint.of_architecture(load_classifier(name)) for name in names]
    assert prints[0] == prints[1] != prints[2]
    assert len({fingerprint.of_weights(load_classifier(name)) for name in names}) == 1


BEHIND = """
import functools
import helpers
from torch import nn

net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3))
nets = {"one": net, "part": net[0]}

def uses_global(images):
    return net(images)

def uses_list(images):
    return sum(network(images) for network in [nets["one"]])

def uses_module(images):
    return helpers.network(images)

def calls_another(images):
    return uses_global(images)

def with_option(images, scale=1.0):
    return scale * uses_global(images)

def make_closure():
    inner = net
    return lambda images: inner(images)

class Wrapper:
    def __init__(self):
        self.inner = net

    def __call__(self, images):
        return self.inner(images)

    def logits(self, images):
        return self.inner(images)

wrapper = Wrapper()
method = wrapper.logits
partial = functools.partial(lambda network, images: network(images), net)

def makes_method():
    return Wrapper().logits
"""


@pytest.mark.parametrize(
    "where",
    [
        "uses_global",
        "uses_list",
        "uses_module",
        "calls_another",
        "with_option,scale=2.0",
        "make_closure",
        "Wrapper",
        "wrapper",
        "method",
        "partial",
        "makes_method",
    ],
)
def test_python__network_behind_a_function_is_frozen_and_moved_with_it(tmp_path, monkeypatch, where):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helpers.py").touch()
    (tmp_path / "behind.py").write_text(BEHIND + "helpers.network = net\n")
    for name in ("behind", "helpers"):
        sys.modules.pop(name, None)
    loaded = load_classifier(f"python:behind:{where}")
    net = sys.modules["behind"].net
    statistics = net[1].running_mean.clone()
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    loaded(images).sum().backward()
    assert torch.equal(net[1].running_mean, statistics)
    assert images.grad is not None
    assert not any(part.training for part in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert {id(parameter) for parameter in loaded.parameters()} == {id(parameter) for parameter in net.parameters()}
    loaded.to("meta")
    assert net[0].weight.is_meta


def test_python__a_network_stays_what_it_is(module):
    loaded = load_classifier("python:my_classifiers:Network")
    assert type(loaded).__name__ == "Network"
    assert set(loaded.state_dict()) == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("python:my_classifiers", "names no attribute"),
        ("python:my_classifierz:make", "cannot be imported"),
        ("python:my_classifiers:nothing", r"my_classifiers \(.*my_classifiers\.py\) has no nothing\.$"),
        ("python:my_classifiers:mak", r"has no mak\. Did you mean make\?"),
        ("python:my_classifiers.inner:make", "cannot be imported .*; install the package"),
        ("python:my_classifiers:number", "is a int, neither a network nor a function"),
        ("python:my_classifiers:fails", "is a int, neither a network nor a function"),
        ("python:my_classifiers:Network,width=3", "cannot be called with {'width': 3}"),
        ("python:my_classifiers:instance,foo=3", "is a network that is made already, and takes no foo"),
    ],
)
def test_python__explains_mistakes(module, where, message):
    with pytest.raises(ValueError, match=message):
        load_classifier(where)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def make(:", r"user_code fails when it is imported: SyntaxError: .*\(user_code\.py, line 1\)$"),
        ("raise RuntimeError('no\\n licence')", "user_code fails when it is imported: RuntimeError: no licence$"),
        ("[].nothing", "user_code fails when it is imported: AttributeError: 'list' object has no attribute"),
        ("import not_there", "user_code fails when it is imported: ModuleNotFoundError: No module named 'not_there'"),
        ("def make(): raise RuntimeError('a\\nb')", "fails when it is called with nothing: RuntimeError: a b$"),
        ("def make(): return [].nothing", "fails when it is called with nothing: AttributeError: 'list' object"),
        ("def make(): return len(3)", "fails when it is called with nothing: TypeError: object of type 'int'"),
        (
            "class make:\n    def __init__(self): 1 + '1'",
            "fails when it is called with nothing: TypeError: uns",
        ),
        ("class make:\n    def __init__(self, depth): pass", "cannot be called with nothing: .* argument: 'depth'$"),
    ],
)
def test_python__says_what_the_user_s_own_code_raises(tmp_path, monkeypatch, code, message):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "user_code.py").write_text(code + "\n")
    sys.modules.pop("user_code", None)
    with pytest.raises(ValueError, match=f"^python:user_code:make.*{message}") as raised:
        load_classifier("python:user_code:make")
    assert raised.value.__cause__ is not None
    if "user_code fails" in message or "fails when it is called" in message:
        assert "install" not in str(raised.value)
        assert "cannot be called" not in str(raised.value)


@pytest.mark.parametrize("code", ["open('weights.pth')", "def make(): open('weights.pth')"])
def test_python__a_file_that_its_code_misses_stays_a_missing_file(tmp_path, monkeypatch, code):
    """Studies skip optional cells whose files are not there."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_code.py").write_text(code + "\n")
    sys.modules.pop("user_code", None)
    with pytest.raises(FileNotFoundError, match=r"^python:user_code:make.* fails when it is .*'weights\.pth'$"):
        load_classifier("python:user_code:make")
