"""`fedpara deploy init`: a folder for each machine, with what belongs there and nothing else."""

import configparser
import ipaddress
import os
import re
import shlex
import shutil
import ssl
import stat
import subprocess
import tomllib

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedpara.config import read_recipe
from fedpara.deploy.folders import init
from fedpara.deploy.plan import NodeFacts, ServerFacts, read_facts, read_plan
from fedpara.deploy.start import command, environment, node_config, only_one, prepare
from fedpara.errors import ConfigError

PLAN = """
name = "clinics"
recipe = "digits"
[changes]
rounds = 7
lr = 0.05
[server]
host = "fl.example.org"
addresses = ["192.0.2.10", "2001:db8::1"]
port = 443
[[clients]]
name = "north"
data-dir = "/srv/images"
device = "cuda:0"
gpu-memory = 6.5
[[clients]]
name = "south-2"
partition = 1
"""


def write(folder, text=PLAN):
    file = folder / "plan.toml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deploy")
    init(write(folder), folder / "out")
    return folder / "out"


def test_every_machine_has_its_folder(made):
    assert sorted(path.name for path in made.iterdir()) == ["authority", "client-north", "client-south-2", "server"]
    for folder in made.iterdir():
        assert (folder / "README.md").stat().st_size > 200
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_secrets_are_where_they_belong_and_readable_by_their_owner_alone(made):
    secrets = {path.relative_to(made).as_posix() for path in made.rglob("*") if b"PRIVATE KEY" in read(path)}
    assert secrets == {"authority/ca.key", "server/server.key", "client-north/node.key", "client-south-2/node.key"}
    for name in secrets:
        assert stat.S_IMODE((made / name).stat().st_mode) == 0o600
    contents = [read(made / name) for name in secrets]
    for path in made.rglob("*"):
        if path.relative_to(made).as_posix() not in secrets:
            assert not any(secret and secret in read(path) for secret in contents)


def read(path):
    return path.read_bytes() if path.is_file() else b""


def test_the_certificate_is_for_every_name_and_signed_by_the_authority(made):
    authority = x509.load_pem_x509_certificate(read(made / "authority" / "ca.crt"))
    server = x509.load_pem_x509_certificate(read(made / "server" / "server.pem"))
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"fl.example.org", "localhost"}
    addresses = {"192.0.2.10", "2001:db8::1", "127.0.0.1"}
    assert set(names.get_values_for_type(x509.IPAddress)) == {ipaddress.ip_address(text) for text in addresses}
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    for folder in ("server", "client-north", "client-south-2"):
        assert read(made / folder / "ca.crt") == read(made / "authority" / "ca.crt")
        ssl.create_default_context(cafile=str(made / folder / "ca.crt"))


def test_each_node_has_a_key_of_its_own_and_the_server_its_public_half(made):
    seen = set()
    for name in ("north", "south-2"):
        private = load_ssh_private_key(read(made / f"client-{name}" / "node.key"), None)
        public = load_ssh_public_key(read(made / "server" / "nodes" / f"{name}.pub"))
        assert private.public_key() == public
        seen.add(public.public_numbers().x)
    assert len(seen) == 2


def test_facts_and_recipe_are_what_the_plan_says(made):
    server, north, south = (read_facts(made / name) for name in ("server", "client-north", "client-south-2"))
    assert isinstance(server, ServerFacts)
    assert (server.host, server.port, server.superlink_port) == ("fl.example.org", 443, 9091)
    assert isinstance(north, NodeFacts)
    assert (north.client, north.data_dir, north.device, north.partition) == ("north", "/srv/images", "cuda:0", None)
    assert isinstance(south, NodeFacts)
    assert (south.partition, south.partitions) == (1, 2)
    assert north.node_port != south.node_port
    recipe = read_recipe(made / "server" / "recipe.toml")
    assert (recipe.clients, recipe.cohort, recipe.rounds, recipe.training.lr) == (2, 2, 7, 0.05)
    assert read(made / "client-north" / "recipe.toml") == read(made / "server" / "recipe.toml")


def test_the_commands_are_flowers_own(made):
    superlink, node = command(made / "server"), command(made / "client-north")
    assert superlink[0] == "flower-superlink"
    assert "--enable-supernode-auth" in superlink
    assert "--disable-runtime-dependency-installation" in superlink
    assert superlink[superlink.index("--host") + 1] == "127.0.0.1"
    assert node[node.index("--superlink") + 1] == "fl.example.org:443"
    config = dict(item.split("=", 1) for item in shlex.split(node[node.index("--node-config") + 1]))
    assert config == {
        "client": "north",
        "data-dir": "/srv/images",
        "device": "cuda:0",
        "gpu-memory": "6.5",
        "own-process": "1",
        "state-dir": str(made / "client-north" / "state"),
        "log": str(made / "client-north" / "state" / "messages.jsonl"),
    }
    for line in (superlink, node):
        shown = subprocess.run([line[0], "--help"], capture_output=True, text=True, check=True).stdout
        assert all(word in shown for word in line if word.startswith("--"))
    variables = environment(made / "server")
    assert variables["FLWR_HOME"] == str(made / "server" / "flwr")
    assert variables["FLWR_TELEMETRY_ENABLED"] == "0"


def test_quotation_marks_cannot_leave_the_node_config(made):
    facts = NodeFacts("client", "f", "north", "h", 1, data_dir='/srv/a" device="x')
    with pytest.raises(ConfigError, match="quotation marks"):
        node_config(made, facts)


def test_units_and_the_proxy_are_complete(made, tmp_path):
    for unit in made.rglob("*.service"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = str
        parser.read_string(unit.read_text())
        assert parser["Service"]["User"] == "fedpara"
        assert parser["Service"]["ReadWritePaths"].startswith("/opt/fedpara/")
    everything = "".join(
        read(path).decode() for path in made.rglob("*") if path.suffix in (".service", ".conf", ".yaml", ".md")
    )
    assert "@{" not in everything
    proxy = (made / "server" / "nginx.conf").read_text()
    assert "listen 443 ssl;" in proxy
    assert re.findall(r"location (?:= )?(\S+)", proxy) == [
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/",
        "/",
    ]
    assert "proxy_pass https://127.0.0.1:9091;" in proxy


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not on this machine")
def test_systemd_accepts_the_units(made, tmp_path):
    for unit in made.rglob("*.service"):
        text = re.sub(r"^Exec(\w*)=\S+", r"Exec\1=/bin/true", unit.read_text(), flags=re.M)
        copy = tmp_path / unit.name
        copy.write_text(text.replace("User=fedpara\n", ""))
    found = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.glob("*.service")))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    assert "Unknown" not in found.stderr, found.stderr


def test_nothing_is_overwritten_and_a_client_can_join(tmp_path):
    plan, out = write(tmp_path), tmp_path / "out"
    assert all(init(plan, out).values())
    (out / "client-north" / "deploy.toml").write_text("changed = true")
    before = {path: (read(path), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    assert not any(init(plan, out).values())
    joined = init(write(tmp_path, PLAN + '[[clients]]\nname = "west"\n'), out)
    assert [folder.name for folder, new in joined.items() if new] == ["client-west"]
    assert {path: (read(path), path.stat().st_mtime_ns) for path in before} == before
    assert (out / "server" / "nodes" / "west.pub").is_file()


def test_a_server_folder_that_was_carried_away_is_signed_by_the_same_authority(tmp_path):
    plan, out = write(tmp_path), tmp_path / "out"
    init(plan, out)
    before = read(out / "client-north" / "ca.crt")
    shutil.rmtree(out / "server")
    assert [folder.name for folder, new in init(plan, out).items() if new] == ["server"]
    renewed = x509.load_pem_x509_certificate(read(out / "server" / "server.pem"))
    renewed.verify_directly_issued_by(x509.load_pem_x509_certificate(before))
    shutil.rmtree(out / "server")
    (out / "authority" / "ca.key").unlink()
    with pytest.raises(ConfigError, match="authority is needed"):
        init(plan, out)
    assert not (out / "server").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[[clients]]", "[[client]]"), "unknown key 'client'.*clients"),
        (('name = "south-2"', 'name = "north"'), "more than one client is called north"),
        (('name = "north"', 'name = "../etc"'), "name '../etc'"),
        (('name = "north"', ""), "name ''"),
        (('host = "fl.example.org"', 'host = "https://fl.example.org"'), "without https"),
        (('host = "fl.example.org"', ""), "server.host is missing"),
        (("port = 443", "port = 9091"), "must differ"),
        (('recipe = "digits"', 'path = "opt/fedpara"'), "path = 'opt/fedpara': an absolute one"),
        (('recipe = "digits"', 'path = "/opt/fed para"'), "path = '/opt/fed para': an absolute one"),
        (('name = "north"', 'name = "Klinik Süd"'), "name 'Klinik Süd'"),
        (("port = 443", "port = 70000"), "outside its range"),
        (("partition = 1", "partition = 2"), "partitions are"),
        (('recipe = "digits"', 'recipe = "digit"'), "did you mean 'digits'"),
        (("rounds = 7", "round = 7"), "unknown key 'round'"),
        (("rounds = 7", "clients = 5"), "changes.clients"),
        (("partition = 1", "rank-share = 0.5"), "none of"),
        (("[changes]", "[[changes]]"), "changes is a table"),
        (("[[clients]]", "[clients]"), "not valid TOML|list of tables"),
    ],
)
def test_a_plan_that_cannot_be_says_why_and_writes_nothing(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        init(write(tmp_path, PLAN.replace(*change, 1)), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_a_plan_without_clients_or_that_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="no clients"):
        read_plan(write(tmp_path, '[server]\nhost = "a"\n'))
    with pytest.raises(ConfigError, match=r"no plan at .*nowhere\.toml"):
        read_plan(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    "text", ["", "role = 'client'", "role = 'boss'", "role = 'server'\nport = 'x'", "role = [", "role='client'\nx=1"]
)
def test_facts_that_were_broken_by_hand_are_a_config_error(text, tmp_path):
    (tmp_path / "deploy.toml").write_text(text)
    with pytest.raises(ConfigError):
        read_facts(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no deploy\.toml"):
        read_facts(tmp_path / "nowhere")


def test_an_output_that_cannot_be_a_folder(tmp_path):
    plan = write(tmp_path)
    for output in (plan, plan / "below"):
        with pytest.raises(ConfigError, match="choose another --output"):
            init(plan, output)


def test_one_program_runs_for_a_folder(made):
    prepare(made / "server")
    with only_one(made / "server", "run"):
        with (
            pytest.raises(ConfigError, match=rf"'fedpara deploy run' runs for .*already, as process {os.getpid()}:"),
            only_one(made / "server", "run"),
        ):
            pass
        with only_one(made / "server", "start"):
            pass
    with only_one(made / "server", "run"):
        pass


def test_compose_files_are_yaml_that_mounts_the_folder_alone_and_opens_one_port(made):
    server = yaml.safe_load((made / "server" / "compose.yaml").read_text())
    assert server["services"].keys() == {"superlink", "proxy", "run"}
    assert {tuple(service["volumes"]) for service in server["services"].values()} == {(".:/deploy",)}
    assert [service.get("ports") for service in server["services"].values()] == [["443:443"], None, None]
    client = yaml.safe_load((made / "client-north" / "compose.yaml").read_text())
    assert client["services"].keys() == {"node"}
    assert "ports" not in client["services"]["node"]


@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not on this machine")
def test_nginx_accepts_its_configuration(made, tmp_path):
    folder = shutil.copytree(made / "server", tmp_path / "server")
    (folder / "work").mkdir(exist_ok=True)
    command = ["nginx", "-t", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    tested = subprocess.run(command, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    assert "warn" not in tested.stderr


def test_versions_are_written_down(made):
    table = tomllib.loads((made / "client-north" / "deploy.toml").read_text())
    assert set(table["versions"]) == {"fedpara", "flwr", "torch"}
