"""``snzoo serve``."""

from __future__ import annotations

import argparse
from typing import Any

from snzoo.cli.common import MODEL, WEIGHTS, add_device_option, path, positive
from snzoo.cli.output import show


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "serve models over HTTP: a page and an API"
    parser = commands.add_parser("serve", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    add = parser.add_argument
    about = f"{MODEL}; several are served together (default: the demo network)"
    add("--model", nargs="+", action="extend", default=[], metavar="NAME", help=about)
    add("--weights", type=path, metavar="FILE", help=WEIGHTS)
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=8000, help="port; 0 chooses a free one (default: 8000)")
    add_device_option(parser)
    about = "photos in a forward pass at most (default: 16 on a CPU, else 128)"
    add("--max-batch", type=positive, metavar="N", help=about)


def run(args: argparse.Namespace) -> int:
    from snzoo.serve import Decoder, Limits, LocalEngine, Metrics, create_app, load_classifiers
    from snzoo.serve.run import bind
    from snzoo.serve.run import run as serve

    listener = bind(args.host, args.port)
    limits, metrics = Limits(), Metrics()
    decoder = Decoder(limits=limits, metrics=metrics)
    classifiers = load_classifiers(args.model, weights=args.weights, device=args.device)
    engine = LocalEngine(classifiers, metrics=metrics, coming=lambda: decoder.pending)
    engine.warm_up()
    app = create_app(engine, limits=limits, decoder=decoder, metrics=metrics)
    host, port = listener.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    serve(
        app, listener, grace=30, on_start=lambda: show(f"snzoo serves at http://{address}:{port}")
    )
    return 0
