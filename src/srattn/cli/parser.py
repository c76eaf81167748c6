"""A parser for one verb, whose complaints are one line that names the nearest option."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jsonargparse

from srattn.errors import SrattnError, nearest

_UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[.*\] "
    r"Errors: ((?:- Expected (?:one of \[[^]]*\]|an? \w+) ?)+)Given value type: \w+ Given value: (.*)$"
)
"""jsonargparse's complaint about a value of an option that may be left out."""


_CALLED = {
    "learning_rate": "lr", "max_lr": "lr", "base_lr": "lr", "wd": "weight_decay", "dropout": "drop_rate",
    "output": "out", "output_dir": "out", "save_dir": "out", "dataset": "data", "mixed_precision": "precision",
    "gradient_accumulation_steps": "accumulate", "grad_clip": "clip_grad", "early_stopping": "patience",
}  # fmt: skip
"""What other tools call an option of ours, where the words are unlike."""


class VerbParser(jsonargparse.ArgumentParser):
    """jsonargparse's parser that raises SrattnError where the original prints a usage and exits.

    Attributes:
        words: the command line that is parsed.
        tells: whether notes on it are printed: not when it is parsed a second time.
        filled: from options to what `--print_config` prints of them.
    """

    words: list[str]
    tells: bool = True
    filled: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        self.words = list(sys.argv[1:] if args is None else args)
        try:
            return super().parse_args(args, *others, **options)
        except UnicodeDecodeError as error:
            raise SrattnError(f"a file of the command line is no text in UTF-8: {error}") from None

    def dump(self, cfg: Any, *others: Any, **options: Any) -> str:
        if self.filled is not None and not options.get("skip_default"):
            cfg = jsonargparse.Namespace({**cfg.as_dict(), **self.filled(cfg.as_dict())})
        return super().dump(cfg, *others, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = _one_line(message)
        raise SrattnError(line + self._hint(line)) from ex

    def given(self, arguments: Sequence[str]) -> set[str]:
        """The options that a command line names, itself or in a file of --config, whatever their value."""
        self.tells = False
        try:
            return set(self.parse_args(list(arguments), defaults=False).as_dict())
        finally:
            self.tells = True

    def _hint(self, message: str) -> str:
        if found := re.search(r"unrecognized arguments: (\S+)", message):
            name = found[1].split("=")[0]
            options = [option for action in self._actions for option in action.option_strings]
            own = [action for action in self._actions if not action.option_strings and action.dest == name.lstrip("-")]
            if own:
                return f"; give it without {name}, as in {self.prog} {own[0].dest.upper()}"
            return _near(name, options) if name.startswith("-") else ""
        if found := re.search(r"[Gg]roup '([^']+)' does not accept option '([^']+)'", message):
            prefix = found[1] + "."
            keys = [a.dest.removeprefix(prefix) for a in self._actions if a.dest.startswith(prefix)]
            return nearest(found[2], keys)
        if found := re.search(
            r"[Oo]ption '([^']+)' is not accepted|[Kk]ey ['\"]([^'\"]+)['\"] is not expected", message
        ):
            return _near(found[1] or found[2], [action.dest for action in self._actions])
        if found := re.search(r"one of \[(.*?)\].*\. Got value: (.*)$", message):
            return nearest(found[2].strip(), re.findall(r"'([^']*)'", found[1]))
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            return nearest(found[1], re.findall(r"[\w.+-]+", found[2]))
        return ""


def _near(name: str, options: Sequence[str]) -> str:
    """As `nearest`, of options that other tools call otherwise by that."""
    dashes = "--" if name.startswith("-") else ""
    ours = dashes + _CALLED.get(name.lstrip("-").replace("-", "_").casefold(), "")
    return nearest(ours if ours in options else name, options)


def make_parser(verb: str, description: str) -> VerbParser:
    """An empty parser for `srattn VERB`; the verb's module adds its arguments to it."""
    return VerbParser(
        prog=f"srattn {verb}",
        description=description,
        allow_abbrev=False,  # a shortened option would change its meaning when a new one is added
    )


def _one_line(message: str) -> str:
    """The parser's message without line breaks and Python's notation of types."""
    line = " ".join(message.split())
    line = re.sub(r"^Parser key ['\"]([^'\"]+)['\"]: ", r"\1: ", line)
    line = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", line)
    line = line.replace("typing.Literal", "one of ").replace("a one of ", "one of ").replace(" a int", " an int")
    return _UNION.sub(_any_of, line)


def _any_of(found: re.Match[str]) -> str:
    """One thing that is expected instead of all types that an option may have, None among them."""
    kinds = [kind.strip().removeprefix("Expected ") for kind in re.split(r"(?:^| )- ", found[1]) if kind]
    return f"Expected {' or '.join(kind for kind in kinds if kind != 'a NoneType')}. Got value: {found[2]}"
