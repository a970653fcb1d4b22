"""Commands that ask an engine for images and what keeps them, and remove what nobody needs."""

from __future__ import annotations

CONTAINERS = r"""
ids=$(docker ps --all --quiet --no-trunc) || exit 69
[ -z "$ids" ] || docker inspect --format "$1" $ids 2>/dev/null || :
"""

REMOVE_IMAGE = r"""
id=$1 label=$2
docker ps --all --quiet --no-trunc --filter "label=$label" | while read -r one; do
  case $(docker inspect --format '{{.Image}} {{.State.Status}}' "$one") in
  "$id exited" | "$id dead") docker rm "$one" ;;
  esac
done
docker image inspect --format '{{range .RepoTags}}{{println .}}{{end}}' "$id" | while read -r name; do
  [ -z "$name" ] || docker rmi "$name"
done
docker image inspect "$id" >/dev/null 2>&1 || exit 0
docker rmi "$id"
"""
"""Removes ended containers of runs, all names and the image; one that another container uses stays."""

IMAGES = r"""
ids=$(docker image ls --all --quiet --no-trunc --filter "label=$1") || exit 69
[ -z "$ids" ] || docker image inspect --format "$2" $(echo "$ids" | sort -u)
"""


def images(label: str) -> list[str]:
    """Every image with a label, one JSON object a line: id, bytes, names, layers."""
    told = '{"id":{{json .Id}},"bytes":{{.Size}},"names":{{json .RepoTags}},"layers":{{json .RootFS.Layers}}}'
    return ["sh", "-c", IMAGES, "sh", label, told]


def containers(label: str) -> list[str]:
    """Every container, one JSON object a line: image, state, name, and its run by the label."""
    fields = {"image": ".Image", "state": ".State.Status", "name": ".Name", "run": f'(index .Config.Labels "{label}")'}
    told = "{" + ",".join(f'"{key}":{{{{json {field}}}}}' for key, field in fields.items()) + "}"
    return ["sh", "-c", CONTAINERS, "sh", told]


def remove_image(image_id: str, label: str) -> list[str]:
    """Remove an image that no container uses but ended ones of runs, which have this label and go with it."""
    return ["sh", "-c", REMOVE_IMAGE, "sh", image_id, label]


def packages(image_id: str, script: str) -> list[str]:
    """Run a Python script in a fresh container of an image, without a network."""
    options = ("--rm", "--pull", "never", "--network", "none", "--cap-drop", "ALL", "--entrypoint", "python")
    return ["docker", "run", *options, image_id, "-c", script]
