import pathlib
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.errors import Exit, LaunchError
from launch.inventory import SshAddress, edit, load, parse, parse_ssh

FULL = """
known_hosts = "keys/known"
[hosts.gpu8]
ssh = "root@gpu8.example.com:2222"
root = "/root/autodl-tmp/"
executor = "docker"
price_per_hour = 12
currency = "USD"
release_command = "give back"
gpus = 8
identity_file = "keys/id"
python = "/opt/bin/python"
image = "mine:1"
registry = "r.example.com:5000/me/too"
registry_user = "robot"
registry_secret = "REGISTRY_PASSWORD"
[hosts.alias]
ssh = "alias"
"""


def write(folder, text):
    (folder / "launch.toml").write_text(text)
    return folder


def read(folder, **environ):
    return load(None, cwd=folder, environ=environ)


def test_without_any_file_there_is_this_machine(tmp_path):
    inventory = read(tmp_path)
    host = inventory.host("local")
    assert inventory.path is None
    assert inventory.home == tmp_path
    assert (host.ssh, host.root, host.executor) == (None, str(tmp_path / "local"), "venv")


def test_every_key_is_read(tmp_path):
    inventory = read(write(tmp_path, FULL))
    host = inventory.host("gpu8")
    assert sorted(inventory.hosts) == ["alias", "gpu8", "local"]
    assert inventory.known_hosts == tmp_path / "keys" / "known"
    assert (host.ssh, host.root, host.executor) == ("root@gpu8.example.com:2222", "/root/autodl-tmp", "docker")
    assert (host.price_per_hour, host.currency, host.release_command) == (12.0, "USD", "give back")
    assert (host.gpus, host.python, host.image) == (8, "/opt/bin/python", "mine:1")
    assert host.identity_file == tmp_path / "keys" / "id"
    assert (host.registry, host.registry_user) == ("r.example.com:5000/me/too", "robot")
    assert host.registry_secret == "REGISTRY_PASSWORD"


def test_what_is_not_said_has_its_default(tmp_path):
    host = read(write(tmp_path, FULL)).host("alias")
    assert (host.root, host.executor, host.gpus, host.price_per_hour) == ("~/minimind", "auto", None, None)


def test_the_file_is_found_upward_and_its_folder_is_home(tmp_path):
    below = write(tmp_path, FULL) / "a" / "b"
    below.mkdir(parents=True)
    inventory = load(None, cwd=below, environ={})
    assert inventory.home == tmp_path
    assert inventory.known_hosts == tmp_path / "keys" / "known"


def test_the_option_wins_over_the_variable_and_that_over_the_folder(tmp_path):
    for name in ("option", "variable", "folder"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, f'[hosts.{name}]\nssh = "x"\n')
    environ = {"LAUNCH_INVENTORY": str(tmp_path / "variable" / "launch.toml")}
    cwd = tmp_path / "folder"
    assert "option" in load(tmp_path / "option" / "launch.toml", cwd=cwd, environ=environ).hosts
    assert "variable" in load(None, cwd=cwd, environ=environ).hosts
    assert "folder" in load(None, cwd=cwd, environ={}).hosts


def test_local_can_be_given_another_root(tmp_path):
    host = read(write(tmp_path, '[hosts.local]\nroot = "scratch"\nexecutor = "docker"\n')).host("local")
    assert (host.root, host.executor) == (str(tmp_path / "scratch"), "docker")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[hosts.gpu8]\nssh = 'x'\nrott = '/r'\n", ["hosts.gpu8.rott", "did you mean 'root'"]),
        ("[host.gpu8]\nssh = 'x'\n", ["host cannot", "did you mean 'hosts'"]),
        ("hosts = 3\n", ["hosts", "a table, not a number"]),
        ("[hosts]\ngpu8 = 'x'\n", ["hosts.gpu8", "a table, not text"]),
        ("[hosts.gpu8]\nssh = 22\n", ["hosts.gpu8.ssh", "text, not a number"]),
        ("[hosts.gpu8]\nssh = 'x'\ngpus = '8'\n", ["hosts.gpu8.gpus", "a whole number, not text"]),
        ("[hosts.gpu8]\nssh = 'x'\ngpus = true\n", ["hosts.gpu8.gpus", "true or false"]),
        ("[hosts.gpu8]\nssh = 'x'\ngpus = -1\n", ["hosts.gpu8.gpus", "0 or more"]),
        ("[hosts.gpu8]\nssh = 'x'\nprice_per_hour = nan\n", ["hosts.gpu8.price_per_hour"]),
        ("[hosts.gpu8]\nssh = 'x'\ncurrency = 'yuan'\n", ["hosts.gpu8.currency"]),
        ("[hosts.gpu8]\nssh = 'x'\nexecutor = 'dcoker'\n", ["hosts.gpu8.executor", "auto, docker, venv, slurm"]),
        ("[hosts.gpu8]\nssh = 'x'\nroot = 'here'\n", ["hosts.gpu8.root", "begin with / or ~/"]),
        ("[hosts.gpu8]\nssh = 'x'\nroot = '/a\\u001b'\n".replace("'", '"'), ["hosts.gpu8.root", "plain path"]),
        ("[hosts.gpu8]\nssh = 'x'\nregistry = 'https://r.example.com'\n", ["hosts.gpu8.registry", "name:port/folder"]),
        ("[hosts.gpu8]\nssh = 'x'\nregistry = 'me/images'\n", ["hosts.gpu8.registry", "name:port/folder"]),
        ("[hosts.gpu8]\nssh = 'x'\nregistry_user = 'me'\n", ["registry_user", "registry_secret is missing"]),
        ("[hosts.gpu8]\nroot = '/r'\n", ["hosts.gpu8.ssh", "missing"]),
        ("[hosts.gpu8]\nssh = 'x:99999'\n", ["hosts.gpu8.ssh", "65535"]),
        ("[hosts.gpu8]\nssh = '-oProxyCommand=id'\n", ["hosts.gpu8.ssh", "user@name:port"]),
        ("[hosts.local]\nssh = 'x'\n", ["hosts.local.ssh", "this machine"]),
        ("[hosts.'a b']\nssh = 'x'\n", ["hosts.a b", "letters"]),
        ("known_hosts = []\n", ["known_hosts", "text, not a list"]),
        ("[hosts.a]\nssh = 'x'\n\n[hosts.a]\nssh = 'y'\n", ["not valid TOML", "line 4"]),
        ("[hosts.a]\nssh = 'x'\nssh = 'y'\n", ["not valid TOML", "line 3"]),
        ("[hosts.a\n", ["not valid TOML", "line 1"]),
    ],
)
def test_what_is_not_understood_is_named_with_file_and_key(tmp_path, text, names):
    with pytest.raises(LaunchError) as caught:
        read(write(tmp_path, text))
    assert caught.value.code == Exit.INVALID
    assert str(tmp_path / "launch.toml") in str(caught.value)
    for name in names:
        assert name in str(caught.value)


def test_a_file_that_is_no_text_or_missing_is_said_to_be(tmp_path):
    (tmp_path / "launch.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(LaunchError, match=r"launch\.toml") as caught:
        read(tmp_path)
    assert caught.value.code == Exit.INVALID
    with pytest.raises(LaunchError) as caught:
        load(tmp_path / "nothing.toml", cwd=tmp_path, environ={})
    assert (caught.value.code, caught.value.why) == (Exit.INVALID, "there is no such file")


def test_an_unknown_host_is_told_the_known_ones(tmp_path):
    with pytest.raises(LaunchError) as caught:
        read(write(tmp_path, FULL)).host("gpu88")
    assert caught.value.code == Exit.INVALID
    assert "did you mean 'gpu8'" in caught.value.what
    assert "alias, gpu8, local" in caught.value.why


@pytest.mark.parametrize(
    ("text", "user", "name", "port"),
    [
        ("gpu8", None, "gpu8", None),
        ("root@gpu8.example.com", "root", "gpu8.example.com", None),
        ("root@gpu8.example.com:2222", "root", "gpu8.example.com", 2222),
        ("a.b-c@10.0.0.7:22", "a.b-c", "10.0.0.7", 22),
        ("root@[fe80::1%eth0]:2222", "root", "fe80::1%eth0", 2222),
        ("root@::1", "root", "::1", None),
        ("[::1]", None, "::1", None),
    ],
)
def test_an_address_is_taken_apart(text, user, name, port):
    assert parse_ssh(text) == SshAddress(user=user, name=name, port=port)


@pytest.mark.parametrize(
    "text", ["", "@x", "x:", "x:ssh", "x:0", "x y", "-x", "-l@x", "x\n", "$(id)", "ssh://x", "a@b@c d"]
)
def test_an_address_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="must"):
        parse_ssh(text)


def test_the_template_is_valid_and_its_examples_are_too(tmp_path):
    assert sorted(parse(edit.TEMPLATE, path=None, home=tmp_path, environ={}).hosts) == ["local"]
    lines = [line.removeprefix("# ") for line in edit.TEMPLATE.splitlines()]
    examples = "\n".join(line for line in lines if line.startswith("[") or " = " in line.partition("#")[0])
    inventory = parse(examples, path=None, home=tmp_path, environ={})
    assert inventory.host("gpu8").gpus == 8
    assert inventory.host("local").root == str(tmp_path / "local")


def test_a_host_is_added_below_what_the_user_wrote():
    text = edit.add_host("# mine\n[hosts.a] # one\nssh = 'x'\n\n\n", "b", {"ssh": "y:1", "root": None, "gpus": 2})
    assert text == "# mine\n[hosts.a] # one\nssh = 'x'\n\n[hosts.b]\nssh = \"y:1\"\ngpus = 2\n"


def test_a_host_is_removed_with_its_keys_and_nothing_else():
    first = "[hosts.a]\nssh = 'x' # why\n# about root\nroot = '/r'\n\n"
    text = f"# top\nknown_hosts = 'k'\n\n{first}# about b\n[hosts.b]\nssh = 'y'\n"
    assert edit.remove_host(text, "a") == "# top\nknown_hosts = 'k'\n\n# about b\n[hosts.b]\nssh = 'y'\n"
    assert edit.remove_host(text, "b").endswith("root = '/r'\n\n# about b\n")


@pytest.mark.parametrize("text", ["hosts = {a = {ssh = 'x'}}\n", "[hosts]\na = {ssh = 'x'}\n", "hosts.a.ssh = 'x'\n"])
def test_tables_written_in_another_way_are_left_to_the_user(text):
    with pytest.raises(LaunchError, match="cannot be edited") as caught:
        edit.remove_host(text, "a")
    assert caught.value.code == Exit.INVALID


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_-]{0,6}", fullmatch=True), st.text(), max_size=4), st.text())
def test_adding_and_removing_give_back_what_was_there(hosts, release_command):
    text = "# a comment\n"
    for name, value in hosts.items():
        text = edit.add_host(text, name, {"ssh": "x", "release_command": value.replace("\x7f", "")})
    before = tomllib.loads(text)
    if "new" not in hosts:
        added = edit.add_host(text, "new", {"ssh": "y", "release_command": release_command.replace("\x7f", "")})
        assert tomllib.loads(added)["hosts"]["new"]["ssh"] == "y"
        assert tomllib.loads(edit.remove_host(added, "new")) == before


def test_a_host_is_changed_in_place_and_comments_stay():
    text = '# top\n[hosts.a]  # mine\nssh = "old"   # the door\nroot = "/r"\n\n# about b\n[hosts.b]\nssh = "x"\n'
    changed = edit.change_host(text, "a", {"ssh": "new", "gpus": 8, "python": None})
    assert changed == text.replace('"old"', '"new"').replace('root = "/r"\n', 'root = "/r"\ngpus = 8\n')
    assert edit.change_host('[hosts.a]\nssh = "old#1"', "a", {"ssh": "n"}) == '[hosts.a]\nssh = "n"\n'
    with pytest.raises(LaunchError, match="cannot be edited"):
        edit.change_host('hosts = {a = {ssh = "x"}}\n', "a", {"ssh": "y"})
    with pytest.raises(LaunchError, match="cannot be edited"):
        edit.change_host("", "a", {"ssh": "y"})


def test_secrets_are_named_for_all_hosts_or_for_one():
    own = {"a": "", "b": 'secrets = ["B", "C"]\n', "c": "secrets = []\n"}
    text = 'secrets = ["A"]\n' + "".join(f'[hosts.{name}]\nssh = "x"\n{line}' for name, line in own.items())
    known = parse(text, path=None, home=pathlib.Path("/h"), environ={})
    assert {name: host.secrets for name, host in known.hosts.items()} == {
        "a": ("A",),
        "b": ("B", "C"),
        "c": (),
        "local": ("A",),
    }
    assert known.secrets_file == pathlib.Path("/h/launch.secrets")


def test_a_value_in_place_of_a_secrets_name_is_refused_and_not_repeated():
    with pytest.raises(LaunchError) as caught:
        parse('secrets = ["key-0123-abcd!"]\n', path=None, home=pathlib.Path("/h"), environ={})
    assert "key-0123" not in str(caught.value)
    host = '[hosts.a]\nssh = "x"\nregistry_user = "me"\nregistry_secret = "key-0123-abcd!"\n'
    with pytest.raises(LaunchError) as caught:
        parse(host, path=None, home=pathlib.Path("/h"), environ={})
    assert "registry_secret" in str(caught.value) and "key-0123" not in str(caught.value)
