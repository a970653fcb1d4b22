from launch.argv import rsync


def test_appending_to_a_part_says_every_word_apart():
    argv = rsync.append(
        ssh=["ssh", "-p", "2222", "-o", 'UserKnownHostsFile="/a b/known"'],
        destination="gpu8",
        remote="/root/out/it's $(id).pth",
        part="/home/me/.sync/00.part",
    )
    assert argv == [
        "rsync",
        "--append",
        "--secluded-args",
        "--progress",
        "--timeout=60",
        "--rsh",
        "ssh -p 2222 -o 'UserKnownHostsFile=\"/a b/known\"'",
        "gpu8:/root/out/it's $(id).pth",
        "/home/me/.sync/00.part",
    ]


def test_an_ipv6_address_stands_in_brackets():
    argv = rsync.append(ssh=["ssh"], destination="fe80::1", remote="/r", part="/p")
    assert argv[-2:] == ["[fe80::1]:/r", "/p"]


def test_packing_is_asked_for_by_name():
    argv = rsync.append(ssh=["ssh"], destination="gpu8", remote="/r", part="/p", pack=True)
    assert argv[5:8] == ["--compress", "--compress-choice=zstd", "--compress-level=1"]
    assert [word for word in argv if "compress" not in word] == rsync.append(
        ssh=["ssh"], destination="gpu8", remote="/r", part="/p"
    )
