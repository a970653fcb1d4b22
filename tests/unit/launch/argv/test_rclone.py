from launch.argv import rclone


def test_paths_join_a_remote_however_it_is_written():
    assert rclone.below("s3:", "out/a") == "s3:out/a"
    assert rclone.below("s3:bucket/", "out/a") == "s3:bucket/out/a"
    assert rclone.below("s3:bucket/deep", "out/a") == "s3:bucket/deep/out/a"


def test_files_move_to_their_names_and_what_they_replace_moves_aside():
    assert rclone.move("s3:b/.sync/incoming/out", "s3:b/out", replaced="s3:b/.previous/20260101T000000Z/out") == [
        "rclone",
        "move",
        "--ignore-times",
        "--backup-dir",
        "s3:b/.previous/20260101T000000Z/out",
        *rclone.NAMES,
        *rclone.TALK,
        "s3:b/.sync/incoming/out",
        "s3:b/out",
    ]


def test_a_remote_that_tells_no_sha256_is_read_back():
    assert "--download" in rclone.hashes("dav:x", download=True)
    assert "--download" not in rclone.hashes("dav:x", download=False)
    assert rclone.copy("/home/me", "s3:b")[-2:] == ["/home/me", "s3:b"]
