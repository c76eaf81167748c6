"""``srattn push``: puts a trained model with its card on the Hugging Face hub, or into a folder of that form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srattn.errors import SrattnError

if TYPE_CHECKING:
    import jsonargparse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=str, help="a run folder of srattn train or its model.safetensors, or a checkpoint"
    )
    parser.add_argument("repo", type=str | None, nargs="?", help="OWNER/NAME on the hub")
    parser.add_argument("--folder", type=str | None, help="write this folder instead, to look at it first")
    parser.add_argument("--public", action="store_true", help="a new repository is private without this")
    parser.add_argument("--branch", type=str | None, help="of the repository; main by default")
    parser.add_argument("--message", type=str, default="A model of srattn", help="of the commit")


def run(args: jsonargparse.Namespace) -> int:
    if (args.repo is None) == (args.folder is None):
        raise SrattnError("give either OWNER/NAME on the hub, or --folder")

    from srattn.engine import hub

    if args.folder is not None:
        print(hub.save_pretrained(args.model, args.folder))
    else:
        print(hub.push(args.model, args.repo, private=not args.public, branch=args.branch, message=args.message))
    return 0
