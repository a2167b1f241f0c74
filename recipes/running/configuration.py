"""The settings of a recipe: a frozen dataclass whose fields know their range and meaning.

    @dataclasses.dataclass(frozen=True)
    class Configuration:
        technique: str = setting("dense", "how", choices=("dense", "magnitude"))
        sparsity: float = setting(0.9, "zeros", least=0, below=1, only=("magnitude",))

`parse(Configuration, ["sparsity=0.95"])` reads `key=value` words. A setting with `only` belongs to
some techniques; elsewhere it is neither accepted nor part of the configuration that is recorded.
A setting whose default is None follows from the others where it is not given: the class fills it
in, in `__post_init__`.
"""

import dataclasses
import difflib
import hashlib
import json
import math


def setting(default, meaning, *, choices=None, least=None, most=None, above=None, below=None,
            only=None):
    """A field: its default, what it means and what it may be (all bounds in the field's unit)."""
    return dataclasses.field(default=default, metadata={
        "meaning": meaning, "choices": choices, "least": least, "most": most, "above": above,
        "below": below, "only": only})


def defaults(kind, **values):
    """The base of a configuration: another one, with other default values of some settings."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    check_keys(values, known)
    return dataclasses.make_dataclass(kind.__name__, [
        (name, known[name].type, dataclasses.field(default=value, metadata=known[name].metadata))
        for name, value in values.items()], bases=(kind,), frozen=True)


def parse(kind, words):
    """The configuration that `key=value` words ask for.

    Raises:
      ValueError: for a word without "=", an unknown key, a key given twice, a value that is not of
        the setting's type or outside its range, a setting of another technique.
    """
    given = pairs(words)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    check_keys(given, fields)
    configuration = kind(**{key: _value(fields[key], text) for key, text in given.items()})
    for key in given:
        if not applies(configuration, fields[key]):
            raise ValueError(
                f"{key} belongs to technique={' | '.join(fields[key].metadata['only'])}. "
                f"Received: technique={configuration.technique}. Leave {key} out, or choose one of "
                "these techniques.")
    return configuration


def pairs(words):
    """{key: text} of `key=value` words."""
    found = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"Settings are given as key=value, without spaces. Received: {word!r}")
        if key in found:
            raise ValueError(f"{key} is given twice: {key}={found[key]} and {key}={text}.")
        found[key] = text
    return found


def options(words, defaults):
    """`defaults` with what `key=value` words give in their place; another key is an error."""
    given = pairs(words)
    check_keys(given, defaults)
    return {**defaults, **given}


def check_keys(given, known):
    for key in given:
        if key not in known:
            raise ValueError(f"There is no setting {key!r}. {nearest(key, known)}")


def nearest(word, known):
    """A sentence that names what was probably meant, or everything there is."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"There are: {', '.join(known)}."


def _value(field, text):
    """The text as the field's type, checked."""
    limits, name = field.metadata, field.name
    if field.type is str:
        if limits["choices"] and text not in limits["choices"]:
            raise ValueError(f"{name}={text}: there is no such {name}. "
                             f"{nearest(text, limits['choices'])}")
        return text
    try:
        value = field.type(text)
    except ValueError:
        what = "an integer" if field.type is int else "a number"
        example = "" if field.default is None else f", for instance {name}={field.default}"
        raise ValueError(f"{name}={text}: {name} is {what}{_range(limits)}{example}.") from None
    near = _nearest_in_range(value, limits, field.default)
    if value != near:
        example = "" if near is None else f" In range is, for instance, {name}={near}."
        raise ValueError(f"{name}={text}: {name} is a number{_range(limits)}.{example}")
    return value


def _range(limits):
    words = [f"{word} {limits[key]:.12g}" for key, word in
             (("least", "from"), ("above", "above"), ("most", "up to"), ("below", "below"))
             if limits[key] is not None]
    return " " + " ".join(words) if words else ""


def _nearest_in_range(value, limits, default):
    """The value itself, the bound that it is beyond, or the default where the bound is excluded."""
    least, most, above, below = (limits[key] for key in ("least", "most", "above", "below"))
    if least is not None and value < least:
        return least
    if most is not None and value > most:
        return most
    outside = (not math.isfinite(value) or above is not None and value <= above
               or below is not None and value >= below)
    return default if outside else value


def applies(configuration, field):
    """Does the setting belong to the technique that the configuration has?"""
    only = field.metadata["only"]
    return only is None or configuration.technique in only


def values(configuration):
    """{key: value} of the settings that apply, in the order of the fields."""
    return {field.name: getattr(configuration, field.name)
            for field in dataclasses.fields(configuration) if applies(configuration, field)}


def digest(recipe, configuration):
    """Twelve hexadecimal digits that name a configuration."""
    return short_hash([recipe, values(configuration)])


def short_hash(value):
    """Twelve hexadecimal digits of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def words(configuration):
    """The `key=value` words that differ from the defaults, and from what follows from the others.
    """
    return changed(type(configuration), values(configuration))


def changed(kind, values):
    """The words of those values that are no defaults and do not follow from the others.

    What follows may follow from what stands before it among the fields: so it is with frequency and
    epochs.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    given = {key: value for key, value in values.items() if defaults[key] is not None}
    found = {key: value for key, value in given.items() if value != defaults[key]}
    for key, default in defaults.items():
        if default is None and key in values and values[key] != usual_values(kind, given)[key]:
            found[key] = given[key] = values[key]
    return [f"{key}={found[key]}" for key in values if key in found]


def usual_values(kind, given):
    """{key: value} of a configuration with some values, and all others as they follow from them."""
    return vars(kind(**given))


STAR = ("* follows from technique and sparsity where it is not given; a number is that of their "
        "defaults.")


def describe(kind):
    """A line for each setting: name, default (with a `STAR` where it follows from others), meaning,
    range, techniques."""
    usual = usual_values(kind, {})
    for field in dataclasses.fields(kind):
        limits = field.metadata
        allowed = ", ".join(limits["choices"]) if limits["choices"] else _range(limits).strip()
        only = f"; only {', '.join(limits['only'])}" if limits["only"] else ""
        value = usual[field.name]
        default = field.default if field.default is not None else (
            "*" if value is None else f"{value}*")
        yield (f"{field.name}={default}", limits["meaning"]
               + (f" ({allowed})" if allowed else "") + only)
