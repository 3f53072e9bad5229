"""view-slides: run folders in, a page in the browser out."""

import argparse
import logging
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY

from wsi_pipeline.base.errors import UsageError
from wsi_pipeline.cli.common import ALL_DONE, command_parser, run_command

EXAMPLE = """  view-slides maps --open

shows the slides that infer-slide mapped into the folder maps, in the browser of this machine alone. Slides are
looked for where the run read them; --slides says where they lie now. For other machines to see it:

  view-slides maps --slides /data/slides --host 0.0.0.0 --token-file token.txt

asks everybody for the token in that file. Ctrl-C ends it."""
PORT = 8765


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser("view-slides", "Show slides and their maps in the browser.", EXAMPLE, device=True)
    parser.add_argument("out", metavar="OUT", help="folder of run folders, or s3://bucket/prefix")
    parser.add_argument(
        "--slides",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="where the slides lie; may be given several times. Default: where the runs read them",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this machine alone)"
    )
    parser.add_argument(
        "--port", type=int, default=PORT, metavar="N", help=f"default {PORT}; 0: any that is free"
    )
    parser.add_argument("--open", action="store_true", help="open the browser")
    parser.add_argument("--read-only", action="store_true", help="nobody may review, grade or try pictures")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="ask for the token in this file, at any address"
    )
    parser.add_argument(
        "--model", default="idc_default", metavar="NAME|FILE", help="what pictures are tried with"
    )
    return run_command(parser, _run, argv, tells_steps=True)


def _run(args: argparse.Namespace) -> int:
    try:
        import uvicorn

        from wsi_pipeline.viewer.access import Access, hashed, is_loopback
        from wsi_pipeline.viewer.app import make_app
        from wsi_pipeline.viewer.service import Viewer
        from wsi_pipeline.viewer.serving import PageServer
    except ImportError as error:
        raise UsageError(
            f"view-slides needs {error.name}, which is not installed: pip install '.[viewer]'"
        ) from error

    from wsi_pipeline.base.files import out_path, reading
    from wsi_pipeline.models.names import check_model_names

    check_model_names([args.model])
    if args.device not in ("auto", "cpu"):
        from wsi_pipeline.inference.device import choose_device

        choose_device(args.device)
    out = out_path(args.out)
    with reading(out):
        is_there = out.exists()
    if not is_there:
        raise UsageError(f"{out}: no such folder; expected the --out of infer-slide or tile-slides")
    for folder in args.slides:
        if not folder.is_dir():
            raise UsageError(f"--slides {folder}: no such folder")
    token = _token(args.token_file, is_loopback(args.host))
    access = Access(hashed(token) if token else None, args.read_only)
    names = frozenset({"localhost", "127.0.0.1", "::1"}) if is_loopback(args.host) and not token else None
    viewer = Viewer(out, args.slides, args.model, args.device)
    app = make_app(viewer, access, names)
    config = uvicorn.Config(
        app,
        host=args.host,
        port=args.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    server = PageServer(app, config)
    socket = config.bind_socket()
    # Who opens the address at once waits until the server answers, and is not refused.
    socket.listen(config.backlog)
    # An answer's head and body are two packets: the second is not to wait for the first to be acknowledged (40 ms). Of
    # a socket that uvicorn binds, asyncio does not do this by itself.
    socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    port = socket.getsockname()[1]
    shown = f"[{args.host}]" if ":" in args.host else args.host
    address = f"http://{shown}:{port}/"
    if token and args.token_file is None:
        logging.getLogger(__name__).warning(
            "%s can be reached from other machines: the token below is asked for", args.host
        )
        address += f"?token={token}"
    print(f"{out} at {address}", flush=True)
    if args.open:
        import webbrowser

        webbrowser.open(address)
    server.run(sockets=[socket])
    return ALL_DONE


def _token(file: Path | None, is_loopback: bool) -> str | None:
    """The token that is asked for; None: none is. Raises UsageError."""
    if file is None:
        return None if is_loopback else secrets.token_urlsafe(24)
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"--token-file {file}: cannot be read ({error})") from error
    if len(token) < 16 or not token.isprintable():
        raise UsageError(f"--token-file {file}: expected a token of at least 16 characters on one line")
    return token


if __name__ == "__main__":
    sys.exit(main())
