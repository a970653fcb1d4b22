"""Shipping and tidying command lines; what the scripts do is tested on real hosts."""

from launch.argv import ship, tidy


def test_pieces_are_named_by_the_caller_and_never_joined():
    assert ship.look("/a b/images", ["x.zst", "y z"])[3:] == ["sh", "/a b/images", "x.zst", "y z"]
    words = ship.receive("/a b", "x.zst", offset=3, length=9, digest="d")
    assert words[3:] == ["sh", "/a b", "x.zst", "3", "9", "d"]
    assert ship.load("/a b", [("raw", "x"), ("zst", "y")])[3:] == ["sh", "/a b", "raw", "x", "zst", "y"]
    assert ship.forget("/a b", ["x"])[3:] == ["sh", "/a b", "x"]
    assert ship.save("sha256:1") == ["docker", "save", "sha256:1"]


def test_a_look_into_an_image_has_no_network_and_pulls_nothing():
    words = tidy.packages("sha256:1", "print()")
    assert words[-3:] == ["sha256:1", "-c", "print()"]
    assert words[words.index("--network") + 1] == "none" and words[words.index("--pull") + 1] == "never"
    assert tidy.remove_image("sha256:1") == ["docker", "rmi", "sha256:1"]
    assert tidy.remove("~/r", ["env/a"])[3:] == ["sh", "~/r", "env/a"]
