"""Shipping and tidying command lines; what the scripts do is tested on real hosts."""

from launch.argv import registry, shelf, ship, tidy


def test_pieces_are_named_by_the_caller_and_never_joined():
    assert ship.look("/a b/images", pieces=True)[3:] == ["sh", "/a b/images", "pieces"]
    assert ship.look("/a b/images", pieces=False)[3:] == ["sh", "/a b/images", ""]
    words = ship.receive("/a b", "x.zst", offset=3, length=9, digest="d")
    assert words[3:] == ["sh", "/a b", "x.zst", "3", "9", "d"]
    assert ship.load("/a b", [("raw", "x"), ("zst", "y")])[3:] == ["sh", "/a b", "raw", "x", "zst", "y"]
    assert ship.forget("/a b", ["x"])[3:] == ["sh", "/a b", "x"]
    assert ship.save("sha256:1") == ["docker", "save", "sha256:1"]


def test_the_look_at_an_engine_waits_for_no_df_without_end():
    script = ship.look("/a b", pieces=False)[2]
    assert "brief()" in script and "folder_free=$(free " in script


def test_a_look_into_an_image_has_no_network_and_pulls_nothing():
    words = tidy.packages("sha256:1", "print()")
    assert words[-3:] == ["sha256:1", "-c", "print()"]
    assert words[words.index("--network") + 1] == "none" and words[words.index("--pull") + 1] == "never"
    assert tidy.remove_image("sha256:1", "x")[-2:] == ["sha256:1", "x"]
    assert shelf.remove("~/r", ["env/a"])[3:] == ["sh", "~/r", "env/a"]


def test_an_image_is_pulled_by_digest_and_no_password_is_a_word_of_a_command():
    push = registry.push("sha256:1", "r:5000/me/x:1", server="r:5000", user="robot")
    assert push[3:8] == ["sh", "r:5000", "robot", "sh", "-c"] and push[-2:] == ["sha256:1", "r:5000/me/x:1"]
    pull = registry.pull("r:5000/me/x@sha256:2", "x:cpu", server="r:5000", user=None)
    assert pull[3:6] == ["sh", "r:5000", ""] and pull[-2:] == ["r:5000/me/x@sha256:2", "x:cpu"]
    assert "--password-stdin" in push[2] and "--password " not in push[2]
