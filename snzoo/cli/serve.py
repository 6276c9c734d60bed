"""``snzoo serve``."""

from __future__ import annotations

import argparse
import ipaddress
from typing import TYPE_CHECKING, Any

from snzoo.cli.common import MODEL, WEIGHTS, add_device_option, path, positive
from snzoo.cli.output import show, warn

if TYPE_CHECKING:
    from snzoo.serve import Limits

MOST_PIXELS = 178  # millions; Pillow refuses larger photos as decompression bombs


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "serve models over HTTP: a page and an API"
    more = "On a CPU, several forward passes run at once and share the cores."
    parser = commands.add_parser(
        "serve", parents=parents, help=about, description=f"{about}. {more}"
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    about = f"{MODEL}; several may be named (default: the demo network)"
    add("--model", nargs="+", action="extend", default=[], metavar="NAME", help=about)
    add("--weights", type=path, metavar="FILE", help=WEIGHTS)
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=port, default=8000, help="0 chooses a free port (default: 8000)")
    add_device_option(parser)
    about = "photos in a forward pass at most (default: 16 on a CPU, else 128)"
    add("--max-batch", type=positive, metavar="N", help=about)
    about = "milliseconds that a photo waits for others on an idle device (default: 2)"
    add("--max-wait", type=number, default=2.0, metavar="MS", help=about)
    about = "photos that are accepted at once; others are answered 503 (default: 256)"
    add("--queue", type=positive, default=256, metavar="N", help=about)
    about = "number of threads that decode (default: the number of cores)"
    add("--workers", type=positive, metavar="N", help=about)
    add("--max-body", type=positive, default=32, metavar="MIB", help="of a request (default: 32)")
    about = "megapixels of a photo, at most 178 (default: 64)"
    add("--max-pixels", type=megapixels, default=64.0, metavar="MP", help=about)
    about = "seconds for a body to arrive, and then for its answer (default: 60)"
    add("--timeout", type=seconds, default=60.0, metavar="S", help=about)
    about = "fetch photos from public URLs that clients name"
    add("--allow-urls", action="store_true", help=about)
    about = "file with the token that clients must send (default: $SNZOO_SERVE_TOKEN, else none)"
    add("--token-file", type=path, metavar="FILE", help=about)


def run(args: argparse.Namespace) -> int:
    import torch

    from snzoo.inference.network import choose_device, local_cores
    from snzoo.serve.local import count_passes, create_local_app
    from snzoo.serve.run import bind, run
    from snzoo.serve.token import VARIABLE, read_token

    token = read_token(args.token_file)
    listener = bind(args.host, args.port)
    device = torch.device(choose_device(args.device))
    torch.set_num_threads(max(1, local_cores() // count_passes(device)))
    app = create_local_app(
        args.model,
        weights=args.weights,
        device=device,
        max_batch=args.max_batch,
        max_wait=args.max_wait / 1000,
        workers=args.workers,
        limits=_limits(args),
        token=token,
        allow_urls=args.allow_urls,
    )
    host, number = listener.getsockname()[:2]
    if not token and not ipaddress.ip_address(host).is_loopback:
        warn(f"anyone who reaches {host} can use this server; set {VARIABLE} or --token-file")
    host = f"[{host}]" if ":" in host else host
    run(app, listener, on_start=lambda: show(f"snzoo serves at http://{host}:{number}"))
    return 0


def _limits(args: argparse.Namespace) -> Limits:
    from snzoo.serve import Limits

    return Limits(
        body=args.max_body << 20,
        pixels=int(args.max_pixels * 1e6),
        queue=args.queue,
        timeout=args.timeout,
    )


def port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got {text!r}")
    return int(text)


def megapixels(text: str) -> float:
    return _above_zero(text, most=MOST_PIXELS)


def seconds(text: str) -> float:
    return _above_zero(text, most=1e6)


def _above_zero(text: str, *, most: float) -> float:
    value = number(text)
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"must be a number above 0, up to {most:,g}, got {text!r}")
    return value


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1,000,000, got {text!r}")
    return value
