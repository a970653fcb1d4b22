"""The scripts of docker/, which is no package."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "docker"))

import archive  # noqa: E402
import bases  # noqa: E402
import build  # noqa: E402
import compare  # noqa: E402
import container  # noqa: E402
import engine  # noqa: E402
import layers  # noqa: E402
import recipe  # noqa: E402
import sbom  # noqa: E402

__all__ = ["archive", "bases", "build", "compare", "container", "engine", "layers", "make_code_layer", "recipe", "sbom"]


def make_code_layer(folder: pathlib.Path) -> layers.Layer:
    """The layer of our own code, made anew."""
    folder.mkdir()
    return recipe.Recipe.of(engine.choose_client(), "cpu", None, folder=folder).make(recipe.CODE_LABEL, folder)
