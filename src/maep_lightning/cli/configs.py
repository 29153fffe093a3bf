"""`configs`: list the shipped configurations, or print one."""

from pathlib import Path

from maep_lightning.cli.errors import fail, nearest


def folder() -> Path:
    """The configurations: `./configs` if there is one, else those of the source checkout.

    Raises:
        SystemExit: Where neither exists, as after an install from a wheel outside the repository.
    """
    for candidate in (Path("configs"), Path(__file__).resolve().parents[3] / "configs"):
        if candidate.is_dir():
            return candidate
    return fail("no folder `configs` here", "run this in a checkout of the repository, where configs/ lies at the top")


def run(args: list[str]) -> None:
    """List every configuration with its first comment, or print those named in `args`.

    Raises:
        SystemExit: Where a named configuration does not exist.
    """
    if args and args[0] in ("-h", "--help"):
        print("usage: configs [NAME ...]\n\nWithout a name: every shipped configuration. With names: their text.")
        return
    root = folder()
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))
    for arg in args:
        name = f"{arg.removeprefix('configs/').removesuffix('.yaml')}.yaml"
        if name not in names:
            fail(f"there is no configuration {arg!r}", nearest(name, names))
        print((root / name).read_text(encoding="utf-8"))
    if not args:
        for name in names:
            first = (root / name).read_text(encoding="utf-8").split("\n", 1)[0]
            print(f"{(root / name).as_posix():44} {first.lstrip('# ') if first.startswith('#') else ''}".rstrip())
