"""The light part of the command: names, start-up, messages."""

import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from maep_lightning import __version__
from maep_lightning.cli import entry, main


def test_both_names_are_the_same_function():
    scripts = {e.name: e for e in metadata.entry_points(group="console_scripts") if "maep_lightning" in e.value}
    assert set(scripts) == {"lightning", "maep"}
    assert scripts["lightning"].load() is scripts["maep"].load() is main


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["configs"], ["configs", "--help"], []])
def test_light_commands_import_no_torch_and_return_none(words):
    code = (
        "import sys; sys.argv = ['maep']; from maep_lightning.cli import main; "
        f"assert main({words!r}) is None; assert not {{'torch', 'lightning'}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_python_dash_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "maep_lightning", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert f"maep-lightning {__version__}" in done.stdout


def test_help_names_every_command(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    for verb in (*entry.HEAVY_VERBS, *entry.LIGHT_VERBS):
        assert f"\n  {verb} " in text


@pytest.mark.parametrize(
    ("owners", "says"),
    [(["maep-lightning"], "belongs to maep-lightning"), (["lightning-sdk", "maep-lightning"], "lightning-sdk")],
)
def test_version_says_who_owns_the_name(owners, says, monkeypatch, capsys):
    scripts = [SimpleNamespace(dist=SimpleNamespace(name=name)) for name in owners]
    monkeypatch.setattr(metadata, "entry_points", lambda **_: scripts)
    main(["--version"])
    assert says in capsys.readouterr().out.splitlines()[-1]


def test_mistyped_command_gets_the_nearest_name(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fitt"])
    assert exit_.value.code == 2
    assert "did you mean fit?" in capsys.readouterr().err


def test_malicious_releases_of_lightning_are_excluded():
    needs = {r.name: r.specifier for r in map(Requirement, metadata.requires("maep-lightning") or [])}
    assert not needs["lightning"].contains("2.6.2")
    assert not needs["lightning"].contains("2.6.3")
    assert needs["lightning"].contains(metadata.version("lightning"))
    assert not needs["jsonargparse"].contains("5.0.0")


def test_unknown_configuration_gets_the_nearest_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs" / "toy").mkdir(parents=True)
    (tmp_path / "configs" / "toy" / "pretrain.yaml").write_text("# What it is for.\nmodel: X\n")
    monkeypatch.chdir(tmp_path)
    main(["configs"])
    assert "What it is for." in capsys.readouterr().out
    main(["configs", "configs/toy/pretrain.yaml"])
    assert "model: X" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["configs", "toy/pretrian"])
    assert exit_.value.code == 2
    assert "toy/pretrain.yaml" in capsys.readouterr().err
