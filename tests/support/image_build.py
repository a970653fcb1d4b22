"""The scripts of docker/, which is no package."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "docker"))

import archive  # noqa: E402
import build  # noqa: E402
import layers  # noqa: E402

__all__ = ["archive", "build", "layers", "make_code_layer"]


def make_code_layer(folder: pathlib.Path) -> layers.Layer:
    """The layer of our own code, made anew."""
    folder.mkdir()
    recipe = build.Recipe.of(build.choose_client(), "cpu", None)
    return recipe.make(build.CODE_LABEL, folder)
