"""Brokers that ask who is there: a password, a certificate, or both, of all of our clients."""

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)
from structlog.testing import capture_logs

from alinfik.server.kafka_io import DEFAULT_RECORD_BYTES, largest_records
from demo.broker import ApacheKafka, free_port
from demo.kafka_jars import JarsMissingError
from tests.kafka.streams import Stream, read, running, send
from tests.kafka.test_exactly_once import samples
from tests.kafka.test_faults import flags, wait_for_log
from tests.server.certificates import write_authority, write_pair
from tests.server_process import running_server
from tests.support import skip_or_fail

pytestmark = pytest.mark.kafka

# The internal listener is for the tests' own clients.
LISTENERS = "PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL"


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """A broker, the ports of its listeners, and a directory of our files."""
    files = tmp_path_factory.mktemp("security")
    authority = trustme.CA()
    write_authority(files, "ca", authority)
    write_pair(files, "ours", authority)
    brokers = write_pair(files, "broker", authority)
    # Kafka reads certificate and key from one file, the key as PKCS #8.
    key = load_pem_private_key(brokers.key.read_bytes(), None)
    pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (files / "keystore.pem").write_bytes(pkcs8 + brokers.certificate.read_bytes())
    (files / "password").write_text("correct horse\n")
    (files / "wrong").write_text("battery staple\n")
    ports = {name: free_port() for name in LISTENERS[1:]}
    addresses = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
    settings = {
        "listeners": "PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},"
        + addresses,
        "advertised.listeners": "PLAINTEXT://127.0.0.1:{port}," + addresses,
        "listener.security.protocol.map": ",".join(
            ["CONTROLLER:PLAINTEXT", *(f"{name}:{name}" for name in LISTENERS)]
        ),
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(files / "keystore.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(files / "ca.pem"),
        "listener.name.ssl.ssl.client.auth": "required",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
        "super.users": "User:ANONYMOUS",
    }
    for name in ("sasl_plaintext", "sasl_ssl"):
        settings[f"listener.name.{name}.scram-sha-512.sasl.jaas.config"] = (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        )
    users = ["--add-scram", "SCRAM-SHA-512=[name=alinfik,password=correct horse]"]
    try:
        broker = ApacheKafka(settings, users)
    except JarsMissingError as missing:
        skip_or_fail(str(missing))
    with broker:
        yield broker, ports, files


@pytest.mark.parametrize("protocol", LISTENERS[1:])
def test_samples_are_valued_over_each_secured_listener(secured, tiny_bundle, protocol):
    broker, ports, files = secured
    stream = Stream(broker).create()
    send(broker, stream.samples, samples(30, stream.partitions))
    with running(settings_for(protocol, stream, ports, files, tiny_bundle)):
        read(broker, stream.valuations, 30)


def test_the_rights_that_are_documented_are_enough(secured, tiny_bundle):
    """They are not those to read the topics' configurations."""
    broker, ports, files = secured
    stream = Stream(broker).create()
    transactions = f"alinfik-{stream.name}"
    rights = [
        allowed(ACLOperation.READ, ResourceType.TOPIC, stream.samples),
        allowed(ACLOperation.READ, ResourceType.GROUP, stream.name),
        allowed(ACLOperation.WRITE, ResourceType.TOPIC, stream.valuations),
        allowed(ACLOperation.WRITE, ResourceType.TOPIC, stream.dead_letters),
        allowed(ACLOperation.WRITE, ResourceType.TRANSACTIONAL_ID, transactions),
    ]
    with broker.admin() as admin:
        admin.create_acls(rights)
    settings = settings_for("SASL_SSL", stream, ports, files, tiny_bundle)
    assert set(largest_records(settings).values()) == {DEFAULT_RECORD_BYTES}
    send(broker, stream.samples, samples(3, stream.partitions))
    with running(settings):
        read(broker, stream.valuations, 3)


def allowed(operation, kind, prefix):
    resources = ResourcePattern(kind, prefix, ACLResourcePatternType.PREFIXED)
    return ACL("User:alinfik", "*", operation, ACLPermissionType.ALLOW, resources)


def test_a_wrong_password_is_said_and_a_right_one_read_without_a_restart(secured, tiny_bundle):
    broker, ports, files = secured
    stream = Stream(broker).create()
    send(broker, stream.samples, samples(3, stream.partitions))
    password = files / "changing"
    password.write_text("battery staple")
    settings = settings_for(
        "SASL_SSL", stream, ports, files, tiny_bundle, kafka_password_file=password
    )
    with capture_logs() as logs, running(settings):
        wait_for_log(logs, "refuses --kafka-username alinfik")
        password.write_text("correct horse")
        read(broker, stream.valuations, 3)


def test_a_broker_of_an_unknown_ca_is_told_from_one_that_is_not_there(
    secured, tiny_bundle, tmp_path
):
    broker, ports, _ = secured
    stranger = write_authority(tmp_path, "stranger", trustme.CA())
    # In a process of its own: kafka-python leaves the sockets of failed handshakes unclosed.
    with running_server(
        tiny_bundle,
        *flags(Stream(broker).settings(tiny_bundle, kafka_bootstrap=f"127.0.0.1:{ports['SSL']}")),
        "--kafka-security-protocol=SSL",
        f"--kafka-tls-ca={stranger}",
    ) as server:
        wait_for_log(server.log, "certificate verify failed")


def settings_for(protocol, stream, ports, files, bundle, **others):
    said = {"kafka_bootstrap": f"127.0.0.1:{ports[protocol]}", "kafka_security_protocol": protocol}
    if protocol.startswith("SASL"):
        said["kafka_username"] = "alinfik"
        said["kafka_password_file"] = files / "password"
    if protocol.endswith("SSL"):
        said["kafka_tls_ca"] = files / "ca.pem"
    if protocol == "SSL":
        said["kafka_tls_certificate"] = files / "ours.pem"
        said["kafka_tls_key"] = files / "ours.key"
    return stream.settings(bundle, **(said | others))
