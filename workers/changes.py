"""Why a result had to be made again: what is different between two lists of ingredients, in a compiler user's words.

Pure. Each cause goes on after 'because'. The order is the order of telling: what bears upon every module first, then
the module's own code, then what others did to it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from attrs import define, field, frozen

from workers.ingredients import Ingredient, IngredientKind

__all__ = ["changes", "option_text", "what_changed"]

_MOST_CAUSES = 3
_MOST_NAMES = 3
# Modules whose code changed are told one by one up to here, so that they do not crowd out the rest.
_MOST_IMPORTS = 2
# Room for most C++ names that people write; the mangled names of templates go on for pages.
_MOST_CHARACTERS = 72

_DIGEST = re.compile(r"(?:sha256:)?[0-9a-f]{16,}")
_FILE_ROLES = (
    (re.compile(r"(^profile|\.(profdata|profraw|prof|afdo))$"), "profile"),
    (re.compile(r"\.(a|so|lib|dll|dylib)(\.[0-9.]+)?$"), "library"),
    (re.compile(r"\.(o|obj)$"), "object"),
)
_TOOL_ROLES = {"ltod": "ltod", "ld.lld": "the linker", "lld": "the linker"}


def what_changed(before: Sequence[Ingredient], after: Sequence[Ingredient], item: str) -> str:
    """The most telling of `changes` as one clause of bounded length; '' if there are none."""
    causes = _causes(before, after, item, _Names(_MOST_NAMES, _MOST_CHARACTERS))
    # What else is known of a module's surroundings changes along with almost everything.
    told = [cause.text for cause in causes if not cause.vague] or [cause.text for cause in causes]
    more = len(told) - _MOST_CAUSES
    clause = _joined(told[:_MOST_CAUSES], ended=more <= 0)
    return f"{clause} (and {more} more)" if more > 0 else clause


def changes(before: Sequence[Ingredient], after: Sequence[Ingredient], item: str) -> list[str]:
    """Every difference between what `item` was made of `before` and what it is made of now; nothing is left out."""
    return [cause.text for cause in _causes(before, after, item, _Names(None, None))]


def option_text(option: Ingredient) -> str:
    """An option as one would write it."""
    glued = not option.value or len(option.name) <= 2 or not option.name[-1].isalnum()
    return _visible(f"{option.name}{'' if glued else ' '}{option.value}")


@frozen
class _Cause:
    text: str
    vague: bool = False


@frozen
class _Names:
    """How names are written: at most so many of a list, with at most so many characters each."""

    most: int | None
    characters: int | None

    def one(self, name: str) -> str:
        return f"`{self.short(_visible(name))}`"

    def short(self, text: str) -> str:
        if self.characters is None or len(text) <= self.characters:
            return text
        half = (self.characters - 3) // 2
        return f"{text[:half]}...{text[-half:]}"

    def many(self, names: Iterable[str], what: str = "") -> str:
        return self.texts([self.one(name) for name in names], what)

    def texts(self, texts: Sequence[str], what: str = "") -> str:
        most = len(texts) if self.most is None else self.most
        # One more takes no more room than saying that there is one more.
        if len(texts) <= most + 1:
            return _joined(texts)
        return f"{', '.join(texts[:most])} and {len(texts) - most} more{f' {what}' if what else ''}"


def _visible(text: str) -> str:
    """Without what moves a cursor or ends a line: names come out of files that anyone may have made."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _joined(parts: Sequence[str], *, ended: bool = True) -> str:
    """`a, b and c`; with semicolons where there are commas inside. Unless `ended`, something follows in brackets."""
    if len(parts) < 2:
        return "".join(parts)
    inner = any("," in part for part in parts)
    if not ended:
        return ("; " if inner else ", ").join(parts)
    return f"{('; ' if inner else ', ').join(parts[:-1])}{'; and ' if inner else ' and '}{parts[-1]}"


def _come(subjects: Sequence[object]) -> str:
    return "comes" if len(subjects) == 1 else "come"


def _be(subjects: Sequence[object], verb: str = "is") -> str:
    plural = {"is": "are", "was": "were"}[verb]
    return verb if len(subjects) == 1 else plural


def _causes(before: Sequence[Ingredient], after: Sequence[Ingredient], item: str, names: _Names) -> list[_Cause]:
    old, new = _Parts.of(before), _Parts.of(after)
    own = _own_code_changed(old, new, item)
    moves = _Moves.between(old, new)
    texts: list[Iterator[str]] = [
        _tools(old, new, names),
        _options(old, new, names),
        _files(old, new, names),
        iter(["its own code changed"] if own else []),
        _moved(moves, names),
        _merged(old, new, item, names),
        _imports(old, new, moves, item, names),
        _exports(old, new, moves, names),
        _symbols(old, new, own, names),
        _orders(old, new),
    ]
    causes = [_Cause(text) for some in texts for text in some]
    if subjects := sorted({subject or "the rest of the program" for subject, _ in old.summary ^ new.summary}):
        what = names.texts([_visible(subject) for subject in subjects])
        causes.append(_Cause(f"what the link knows about {what} changed", vague=True))
    return causes


@define
class _Parts:
    """The ingredients of one result, sorted by what they are."""

    tools: dict[str, str] = field(factory=dict)
    options: list[Ingredient] = field(factory=list)
    files: dict[str, str] = field(factory=dict)
    modules: dict[str, str] = field(factory=dict)
    imports: dict[str, tuple[str, frozenset[str]]] = field(factory=dict)
    exports: set[str] = field(factory=set)
    symbols: dict[str, frozenset[str]] = field(factory=dict)
    summary: set[tuple[str, str]] = field(factory=set)

    @classmethod
    def of(cls, ingredients: Iterable[Ingredient]) -> _Parts:
        parts = cls()
        for one in ingredients:
            match one.kind:
                case IngredientKind.COMPILER:
                    parts.tools[one.name] = one.value
                case IngredientKind.OPTION:
                    parts.options.append(one)
                case IngredientKind.FILE:
                    _append(parts.files, one)
                case IngredientKind.MODULE:
                    _append(parts.modules, one)
                case IngredientKind.IMPORT:
                    parts.imports[one.name] = (one.value, frozenset(one.symbols))
                case IngredientKind.EXPORT:
                    parts.exports.update(one.symbols)
                case IngredientKind.SYMBOL:
                    words = (word.strip() for word in one.value.split(","))
                    parts.symbols[one.name] = frozenset(word for word in words if word)
                case IngredientKind.SUMMARY:
                    parts.summary.add((one.name, one.value))
        return parts


def _append(digests: dict[str, str], one: Ingredient) -> None:
    """Two of one name count as one, made of both."""
    digests[one.name] = f"{digests[one.name]} {one.value}" if one.name in digests else one.value


def _tools(old: _Parts, new: _Parts, names: _Names) -> Iterator[str]:
    gone = [name for name in old.tools if name not in new.tools]
    come = [name for name in new.tools if name not in old.tools]
    for name, value in new.tools.items():
        if old.tools.get(name, value) != value:
            was, version = _version(old.tools[name]), _version(value)
            # The digest tells builds of one version from each other.
            how = f"{name} {was} became {version}" if was != version else f"another build of {name} {version}".strip()
            yield f"{_TOOL_ROLES.get(name, 'the compiler')} changed ({names.short(_visible(how))})"
    if gone and come:
        yield f"it is made with {names.many(come)} now, not with {names.many(gone)}"
    elif come:
        yield f"{names.many(come)} {_be(come)} used now"
    elif gone:
        yield f"{names.many(gone)} {_be(gone)} no longer used"


def _version(value: str) -> str:
    return " ".join(word for word in value.split() if not _DIGEST.fullmatch(word.strip("(),")))


def _options(old: _Parts, new: _Parts, names: _Names) -> Iterator[str]:
    dropped = list((Counter(old.options) - Counter(new.options)).elements())
    added = list((Counter(new.options) - Counter(old.options)).elements())
    for option in tuple(added):
        was = next((one for one in dropped if one.name == option.name), None)
        if was is not None:
            dropped.remove(was)
            added.remove(option)
            yield f"{names.short(option_text(was))} became {names.short(option_text(option))}"
    for options, what in ((added, "added"), (dropped, "dropped")):
        if options:
            texts = [names.short(option_text(option)) for option in options]
            yield f"{names.texts(texts, 'options')} {_be(options, 'was')} {what}"


def _files(old: _Parts, new: _Parts, names: _Names) -> Iterator[str]:
    for role in ("profile", "library", "object", "file"):
        mine = [name for name in {**old.files, **new.files} if _role(name) == role]
        gone = [name for name in mine if name not in new.files]
        come = [name for name in mine if name not in old.files]
        changed = [name for name in mine if name in old.files and name in new.files]
        changed = [name for name in changed if old.files[name] != new.files[name]]
        if changed:
            yield f"{_the(role, changed, names)} changed"
        if len(gone) == len(come) == 1:
            yield f"the {role} is now {names.one(come[0])}, not {names.one(gone[0])}"
            continue
        if come:
            yield f"{_the(role, come, names)} {_be(come)} used now"
        if gone:
            yield f"{_the(role, gone, names)} {_be(gone)} no longer used"


def _the(role: str, files: Sequence[str], names: _Names) -> str:
    """Files that are called what they are need no name."""
    return f"the {role}" if [*files] == [role] else f"the {_plural(role, files)} {names.many(files)}"


def _role(name: str) -> str:
    return next((role for pattern, role in _FILE_ROLES if pattern.search(name)), "file")


def _plural(word: str, things: Sequence[object]) -> str:
    if len(things) == 1:
        return word
    return f"{word.removesuffix('y')}ies" if word.endswith("y") else f"{word}s"


def _own_code_changed(old: _Parts, new: _Parts, item: str) -> bool:
    return item in old.modules and item in new.modules and old.modules[item] != new.modules[item]


def _merged(old: _Parts, new: _Parts, item: str, names: _Names) -> Iterator[str]:
    changed = [name for name, digest in new.modules.items() if old.modules.get(name, digest) != digest and name != item]
    come = [name for name in new.modules if name not in old.modules]
    gone = [name for name in old.modules if name not in new.modules]
    if changed:
        yield f"the code of {names.many(changed, 'modules')} changed"
    for name in tuple(come):
        was = next((one for one in gone if old.modules[one] == new.modules[name]), None)
        if was is not None:
            come.remove(name)
            gone.remove(was)
            yield f"the module {names.one(was)} is now called {names.one(name)}"
    for modules, what in ((come, "added"), (gone, "removed")):
        if modules:
            yield f"the {_plural('module', modules)} {names.many(modules)} {_be(modules, 'was')} {what}"


@frozen
class _Moves:
    """Functions that come from another module now: from which to which, '' for the module itself."""

    places: Mapping[str, tuple[str, str]]

    @classmethod
    def between(cls, old: _Parts, new: _Parts) -> _Moves:
        was, now = _homes(old), _homes(new)
        return cls({name: (was[name], home) for name, home in now.items() if was.get(name, home) != home})

    def without(self, names: Iterable[str]) -> list[str]:
        return sorted(name for name in names if name not in self.places)


def _homes(parts: _Parts) -> dict[str, str]:
    """Where each function is that the module shares with others; not those that seem to be in several modules."""
    counts = Counter(name for _, symbols in parts.imports.values() for name in symbols)
    homes = {name: home for home, (_, symbols) in parts.imports.items() for name in symbols if counts[name] == 1}
    return {
        **{name: home for name, home in homes.items() if name not in parts.exports},
        **dict.fromkeys(parts.exports, ""),
    }


def _moved(moves: _Moves, names: _Names) -> Iterator[str]:
    routes: dict[tuple[str, str], list[str]] = {}
    for name, route in sorted(moves.places.items()):
        routes.setdefault(route, []).append(name)
    for (source, target), functions in routes.items():
        listed = names.many(functions, "functions")
        # Whether somebody moved it cannot be told: of equal functions in many modules, the linker may prefer another.
        if not source:
            yield f"{listed}, which it exported, {_come(functions)} from {names.one(target)} now"
        elif not target:
            yield f"{listed}, which came from {names.one(source)}, {_be(functions)} its own now"
        else:
            yield f"it imports {listed} from {names.one(target)} now, not from {names.one(source)}"


def _imports(old: _Parts, new: _Parts, moves: _Moves, item: str, names: _Names) -> Iterator[str]:
    changed = [name for name, (digest, _) in new.imports.items() if old.imports.get(name, (digest,))[0] != digest]
    plain = []
    others = []
    for module in {**new.imports, **old.imports}:
        was = old.imports.get(module, ("", frozenset[str]()))[1]
        now = new.imports.get(module, ("", frozenset[str]()))[1]
        come, gone = moves.without(now - was), moves.without(was - now)
        if come or gone:
            others.append(_import_list(module, come, gone, names, changed=module in changed))
        elif module in changed:
            plain.append(module)
        elif (module in old.imports) != (module in new.imports) and not was and not now:
            verb = "now imports" if module in new.imports else "no longer imports"
            others.append(f"it {verb} from {names.one(module)}")
    if names.most is not None and len(plain) > _MOST_IMPORTS:
        yield f"{names.one(item)} imports from {names.many(plain, 'modules')}, whose code changed"
    else:
        for module in plain:
            functions = sorted(new.imports[module][1])
            what = f"{names.many(functions, 'functions')} " if functions else ""
            yield f"{names.one(item)} imports {what}from {names.one(module)}, whose code changed"
    yield from others


def _import_list(module: str, come: list[str], gone: list[str], names: _Names, *, changed: bool) -> str:
    code = ", whose code changed" if changed else ""
    home = f"from {names.one(module)}{code}"
    if not come:
        return f"it no longer imports {names.many(gone, 'functions')} {home}"
    text = f"it now imports {names.many(come, 'functions')} {home}"
    return f"{text}, and no longer {names.many(gone, 'functions')}" if gone else text


def _exports(old: _Parts, new: _Parts, moves: _Moves, names: _Names) -> Iterator[str]:
    come, gone = moves.without(new.exports - old.exports), moves.without(old.exports - new.exports)
    parts = [f"grew by {names.many(come)}"] if come else []
    if gone:
        parts.append(f"shrank by {names.many(gone)}")
    if parts:
        yield f"its export list {' and '.join(parts)}"


def _symbols(old: _Parts, new: _Parts, own: bool, names: _Names) -> Iterator[str]:
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for name in sorted({*old.symbols, *new.symbols}):
        if own and not (name in old.symbols and name in new.symbols):
            # It came or went with the code.
            continue
        was, now = old.symbols.get(name, frozenset()), new.symbols.get(name, frozenset())
        if was != now:
            groups.setdefault((tuple(sorted(now - was)), tuple(sorted(was - now))), []).append(name)
    for (come, gone), symbols in groups.items():
        yield f"{names.many(symbols, 'symbols')} {_be(symbols)} {_state(come, gone)}"


def _state(come: Sequence[str], gone: Sequence[str]) -> str:
    if not come:
        return "alive again" if gone == ("dead",) else f"no longer {_visible(_joined(gone))}"
    text = f"now {_visible(_joined(come))}"
    return f"{text}, no longer {_visible(_joined(gone))}" if gone else text


def _orders(old: _Parts, new: _Parts) -> Iterator[str]:
    """Things that are the same, in another order."""
    kinds: tuple[tuple[str, Callable[[_Parts], list[object]]], ...] = (
        ("options", lambda parts: list(parts.options)),
        ("files", lambda parts: list(parts.files)),
        ("modules", lambda parts: list(parts.modules)),
    )
    for what, part in kinds:
        was, now = part(old), part(new)
        if was != now and Counter(was) == Counter(now):
            yield f"the order of its {what} changed"
