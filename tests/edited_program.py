"""A generated program of a few modules, and random edits of it: for tests of what is compiled again."""

from __future__ import annotations

import random
from collections.abc import Iterator

from attrs import define, field

__all__ = ["Program"]


@define
class _Function:
    home: int
    constant: int
    loops: int
    calls: list[int]
    static_helper: bool = False
    table: int | None = None
    weak: bool = False
    inline: bool = False


@define
class Program:
    """Functions with numbers; each calls some with higher numbers, in whichever module these are."""

    rng: random.Random
    modules: int = 12
    functions: dict[int, _Function] = field(factory=dict)
    kept: set[int] = field(factory=set)
    _next: int = 0

    def __attrs_post_init__(self) -> None:
        for number in range(self.modules * 4):
            self.functions[number] = _Function(
                number % self.modules, self.rng.randrange(1000), self.rng.choice((0, 0, 0, 6, 12)), []
            )
        self._next = len(self.functions)
        for number in self.functions:
            self._call_more(number, 2)
            self.functions[number].static_helper = self.rng.random() < 0.4
            self.functions[number].table = number if self.rng.random() < 0.4 else None
        self.kept = set(range(4))

    def _call_more(self, number: int, count: int) -> None:
        higher = [other for other in self.functions if other > number]
        calls = self.functions[number].calls
        calls += [other for other in self.rng.sample(higher, min(count, len(higher))) if other not in calls]

    def edit(self) -> str:
        """Change something; gives what."""
        rng = self.rng
        number = rng.choice(list(self.functions))
        function = self.functions[number]
        match rng.randrange(11):
            case 0 | 1:
                function.constant = rng.randrange(1000)
                return f"constant of {number}"
            case 2:
                function.loops = rng.choice((0, 6, 12))
                return f"size of {number}"
            case 3:
                self._call_more(number, 1)
                return f"call added to {number}"
            case 4:
                if function.calls:
                    function.calls.pop(rng.randrange(len(function.calls)))
                return f"call removed from {number}"
            case 5:
                function.home = rng.randrange(self.modules)
                return f"{number} moved to m{function.home:02}"
            case 6:
                function.static_helper = not function.static_helper
                return f"helper of {number}"
            case 7:
                function.table = None if function.table is not None else number
                return f"table of {number}"
            case 8:
                self.kept ^= {number}
                return f"{number} dead or alive"
            case 9:
                function.weak = not function.weak
                return f"weakness of {number}"
            case _:
                function.inline = not function.inline
                return f"inline of {number}"

    def sources(self) -> dict[str, str]:
        """The text of every module, by name."""
        return {f"m{module:02}": "\n".join(self._lines(module)) + "\n" for module in range(self.modules)}

    def _lines(self, module: int) -> Iterator[str]:
        here = {number: function for number, function in self.functions.items() if function.home == module}
        named = sorted(
            {other for function in here.values() for other in function.calls} | (self.kept if not module else set())
        )
        for number in named:
            yield f"int f{number}(int);"
        for number in sorted(here, reverse=True):
            function = here[number]
            if function.static_helper:
                yield f"static int h{number}(int x) {{ static int s; s += x; return s * {number + 3}; }}"
            if function.table is not None:
                yield f"static const int t{number}[4] = {{{number}, 2, {number * 7}, 4}};"
            body = [f"int r = x + {function.constant};"]
            body += [f"r ^= (r >> {n % 7 + 1}) * {n + 11};" for n in range(function.loops)]
            body += [f"r += f{other}(r);" for other in function.calls]
            if function.static_helper:
                body.append(f"r += h{number}(r);")
            if function.table is not None:
                body.append(f"r += t{number}[r & 3];")
            before = "__attribute__((weak)) " if function.weak else ""
            yield f"{before}int f{number}(int x) {{ {' '.join(body)} return r; }}"
        if not module:
            yield (
                "int main(void) { return " + " + ".join(f"f{number}({number})" for number in sorted(self.kept)) + "; }"
            )
